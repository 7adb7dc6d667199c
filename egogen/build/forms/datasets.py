"""Forms that are one table (EPIC-KITCHENS-100, HD-EPIC, Assembly101), or lists in one JSON file
(Ego-Exo4D, HoloAssist, Something-Something v2).
"""

import ast
import math
import re
from pathlib import Path

from egogen.atomic import read_json, read_object
from egogen.build.forms.reading import Reading, video_times
from egogen.build.rows import Options, Row, Table, epic_rate


def read_epic(path: Path, options: Options) -> Table:
    """EPIC_100_train.csv: times by its time stamps, as its frame numbers are no video's.

    With `--video-info EPIC_100_video_info.csv` what lies behind the end of a video is left out.
    """
    found, times = Reading(path, options), video_times(options)
    for where, row in found.rows("epic100"):
        name = row.pop("id")
        number = re.fullmatch(r".+_([0-9]+)", name)
        if not number:
            raise found.bad(where, f"narration_id {name!r}, expected VIDEO_NUMBER")
        made = Row(**row, id=number[1], fps=epic_rate(row["clip"]))
        found.add(where, made, times.get(made.clip, (math.inf,))[0])
    return found.table


def read_hd_epic(path: Path, options: Options) -> Table:
    """HD_EPIC_Narrations.pkl, or the same table as CSV or parquet.

    The sentence of a narration is its description; the main actions are its label, as "put down
    garbage bag and pick up mug".
    """
    found = Reading(path, options)
    for where, row in found.rows("hd-epic"):
        pairs = row.pop("pairs")
        try:
            pairs = ast.literal_eval(pairs) if isinstance(pairs, str) else pairs
            pairs = [] if pairs is None else pairs
            pairs = [(verb.replace("-", " "), *noun.split(":")[::-1]) for verb, noun in pairs]
        except (ValueError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError):
            text = f"main_actions {str(pairs)[:60]!r}, expected pairs of a verb and a noun"
            raise found.bad(where, text) from None
        found.add(where, Row(**row, action=" and ".join(" ".join(words) for words in pairs)))
    return found.table


def read_assembly101(path: Path, options: Options) -> Table:
    """train.csv of the fine-grained actions: 30 frames a second, videos "sequence/view.mp4"."""
    found = Reading(path, options)
    for where, row in found.rows("assembly101"):
        words = row["action"] or f"{row['verb']} {row['noun']}".strip()
        start, end = (t if t is None else t / 30 for t in (row["start"], row["end"]))
        found.add(where, Row(row["clip"], start, words, end, id=row["id"]))
    return found.table


def read_egoexo4d(path: Path, options: Options) -> Table:
    """Atomic descriptions or keysteps of the camera's wearer, numbered within their take.

    The clip is the take's name; `--video-info takes.json` tells that of the atomic descriptions.
    """
    found, names = Reading(path, options), {}
    if options.video_info:
        info = Reading(options.video_info, options)
        for _, (known,) in info.walk("takes", read_json(options.video_info), "takes"):
            names[known["id"]] = known["name"]
    takes = found.values("the file", read_object(path), "egoexo4d")["takes"] or {}
    for uid, items in takes.items():
        items = items if isinstance(items, list) else [items]  # of an annotator each
        steps = found.walk(f"annotations/{uid}", items, "egoexo4d-take", "egoexo4d-step")
        for number, (place, (take, row)) in enumerate(steps):
            name, instant = take["name"] or names.get(uid, ""), row.pop("instant")
            if not name and not names:
                raise found.bad(place, "no take_name, expected --video-info takes.json to tell it")
            reasons = {
                "rejected": take["rejected"],
                "no name of the take": not name,
                "not by the wearer": row.pop("subject") not in ("", "C"),
                "not visible": row.pop("visible") is False,
                "unsure": row.pop("unsure"),
            }
            if not found.left_out(place, reasons):
                row["start"] = row["start"] if instant is None else instant
                found.add(place, Row(name, **row, id=str(number)), ends=instant is None)
    return found.table


def read_holoassist(path: Path, options: Options) -> Table:
    """Fine grained actions, called by verb, adjective and noun; the coarse ones consist of them."""
    found = Reading(path, options)
    events = found.walk("videos", read_json(path), "holoassist-video", "holoassist-event")
    for place, (video, row) in events:
        if row["label"].lower() == "fine grained action":
            words = found.values(place, row["words"] or {}, "holoassist-words")
            wrong = words.pop("correctness").lower().startswith("wrong")
            action = " ".join(word for word in words.values() if word.lower() not in ("", "none"))
            name = row["id"] or place.rsplit("/", 1)[1]
            if not found.left_out(place, {"wrong action": wrong}):
                found.add(place, Row(video["clip"], row["start"], action, row["end"], id=name))
    return found.table


def read_ssv2(path: Path, options: Options) -> Table:
    """A row a video, from its first to its last frame.

    When that is says `--video-info` (video_id, duration, fps), else the video when it is read.
    """
    found, times = Reading(path, options), video_times(options)
    for place, (row,) in found.walk("videos", read_json(path), "ssv2"):
        length, fps = times.get(row["id"], (math.inf, 1.0))
        target = math.inf if length == math.inf else (round(length * fps) - 1) / fps
        if not found.left_out(place, {"no duration": times and row["id"] not in times}):
            made = Row(row["id"], None, row["action"], source=0.0, target=target, id=row["id"])
            found.add(place, made)
    return found.table

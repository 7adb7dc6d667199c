"""Forms that are tables: EPIC-KITCHENS-100, HD-EPIC and Assembly101."""

import ast
import math
import re
from pathlib import Path

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

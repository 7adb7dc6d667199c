"""Ego4D's hands and objects: fho_main.json."""

import json
import math
from fractions import Fraction
from itertools import product
from pathlib import Path

from egogen import EgoGenError, read_object
from egogen.build.forms.reading import FIELDS, Reading
from egogen.build.rows import Options, Row, Table, usual_rate
from egogen.labels import clean_label

FPS = 30.0  # of canonical clips, and of videos whose metadata do not say it
ACTION = {name for _, *names in FIELDS["ego4d-action"].values() for name in names}
LEVELS = ("ego4d-video", "ego4d-interval", "ego4d-action")


def read_fho(path: Path, options: Options) -> Table:
    """A row an interaction: from the PRE frame `options.pre` to the PNR frame of its video.

    With `options.on` "clip": of its canonical clip. Seconds are frame / rate, 30 where the video's
    is not known, so that they name the very frame.
    """
    found, chosen = Reading(path, options), {options.pre: "source", "pnr_frame": "target"}
    content = read_object(path, keep=lambda entry: _needed(entry, chosen))
    if "videos" not in content:
        head = json.dumps(content)[:100_000]
        kinds = [f"looks like {w}, " for key, w in FIELDS["ego4d-others"].items() if key in head]
        raise EgoGenError(f"{path}: {''.join(kinds[:1])}expected fho_main.json with its videos")
    for place, (video, part, action) in found.walk("videos", content["videos"], *LEVELS):
        known = found.values(place, video["metadata"] or {}, "ego4d-metadata")
        clip, length = video["clip"], known["frames"]
        rate = float(usual_rate(Fraction(known["fps"] or FPS)))  # one rounded up is a frame early
        if options.on == "clip":
            clip, rate, length = part["clip"], FPS, part["end"]
            length = length and length - (part["start"] or 0)
        frames = found.values(place, action[options.on] or {}, "ego4d-frames")
        source, target = frames[options.pre], frames["pnr_frame"]
        text, asked = action["text"], clean_label(action["text"], "ego4d")
        reasons = {
            "rejected": action["rejected"],
            "invalid": action["invalid"] or action["valid"] is False,
            "no clip": not clip,
            "no PNR frame": target is None,
            f"no {options.pre} frame": source is None,
            "PNR frame not after the source": None not in (source, target) and target <= source,
            "unsure": not asked and "unsure" in text.lower(),
            "no narration": not asked,
        }
        if not found.left_out(place, reasons):
            boxes = _boxes(found, place, action["frames"] or [], chosen)
            times = {"source": source / rate, "target": target / rate}
            row = Row(clip, None, text, id=action["id"], boxes=boxes, **times)
            found.add(place, row, (length or math.inf) / rate, split=video["split"])
    return found.table


def _needed(entry: dict, chosen: dict[str, str]) -> dict:
    """Of an interaction what is read, of frames the chosen ones: the file may have gigabytes."""
    if "narration_text" in entry:
        entry = {name: value for name, value in entry.items() if name in ACTION}
    return entry if entry.get("frame_type", "pnr_frame") in [*chosen] else {}


def _boxes(found: Reading, where: str, frames: list, chosen: dict[str, str]) -> str:
    """`Row.boxes` of the chosen frames (name there -> here), in pixels of the video.

    An item of `frames` has a frame_type, or, as in fho_hands, the frame below its name. A box is
    {"bbox": {x, y, width, height}} of an object, or {"left_hand": [x, y, x, y]}.
    """
    boxes = []
    try:
        for item, name in product(filter(None, frames), chosen):
            frame = item if item.get("frame_type") == name else item.get(name) or {}
            for box in filter(None, frame.get("boxes") or []):
                if "bbox" in box:
                    area: dict = box["bbox"] or dict.fromkeys(("x", "y", "width", "height"))
                    x, y, *size = (area["x"], area["y"], area["width"], area["height"])
                    corners = None if None in (x, y, *size) else [x, y, x + size[0], y + size[1]]
                    box = {box.get("structured_noun") or box.get("object_type"): corners}
                for thing, corners in box.items():
                    if corners and None not in corners:  # a box may be null, and so a side
                        numbers = [float(corner) for corner in corners]
                        boxes.append({"frame": chosen[name], "object": thing, "bbox": numbers})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise found.bad(where, "frames, expected boxes of x, y, width and height") from None
    return json.dumps(boxes) if boxes else ""

"""Actions as every form of annotation gives them, and how their times follow from what is known."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from egogen import SPLITS, EgoGenError
from egogen.actions import identifier, safe_relative

SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "val"}
PRE_FRAMES = ("pre_15", "pre_30", "pre_45", "pre_frame")  # Ego4D's, before the state changes
VIDEOS = "the folder of the videos"  # which no name of a clip or image leads out of
# 1:02:03.5, 75:30 or 83.2; bounded, so that any unit of time holds it
TIME = re.compile(r"(?:(?:([0-9]{1,6}):)?([0-9]{1,6}):)?([0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)")
LATER = ("source", "target", "fps", "boxes", "before", "after")  # unknown to the first folders


def seconds(text: str) -> float:
    """'83.2', '1:23.2' or '0:01:23.2' -> 83.2. Raises ValueError."""
    match = TIME.fullmatch(text.strip())
    if not match:
        raise ValueError(text)
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    if match[2] and rest >= 60 or match[1] and minutes >= 60:
        raise ValueError(text)
    return (hours * 60 + minutes) * 60 + rest


@dataclass(frozen=True)
class Timing:
    """Which frames make a pair where a row does not say it, in seconds.

    The source is `before` ahead of the start. The target is at the contact where the row has one,
    else at `fraction` of the way from start to end where it has an end (as Epic-Kitchens' rows do),
    else `after` behind the start.
    """

    before: float = 0.25
    fraction: float = 0.6
    after: float = 1.0


@dataclass(frozen=True)
class Row:
    """An action: where it is seen, what it is called, and what the pair's files are named by."""

    clip: str  # as in the table: a video, archive or folder of frames below --videos
    start: float | None  # of the action; None where `source` and `target` are known
    action: str
    end: float | None = None
    contact: float | None = None
    split: str = "train"
    id: str = ""
    description: str = ""
    source: float | None = None  # of the very frame, in seconds
    target: float | None = None  # infinite: the last frame of the clip
    fps: float | None = None  # of the clip's extracted frames, where they are no video
    boxes: str = ""  # JSON: [{"frame": "source" or "target", "object", "bbox": [x, y, x, y]}, ...]
    before: str = ""  # of a ready pair: its images below --videos, as "a/1.jpg" or "x.tar/1.jpg"
    after: str = ""
    clip_id: str = ""  # name of the clip in the dataset, known when its video has been found

    def as_written(self) -> dict[str, Any]:
        """What the table says of it: folders made before hold the same."""
        known = {name: value for name, value in asdict(self).items() if name != "clip_id"}
        if self.target == math.inf:  # which JSON cannot say
            known["target"] = "last frame"
        return {n: v for n, v in known.items() if n not in LATER or v not in (None, "")}

    def times(self, timing: Timing) -> tuple[float, float]:
        """(source, target) in seconds; the source not before the clip's begin."""
        start = self.start if self.start is not None else self.source or 0.0
        target = self.contact if self.target is None else self.target
        if target is None and self.end is not None:
            target = start + timing.fraction * (self.end - start)
        elif target is None:
            target = start + timing.after
        source = self.source if self.source is not None else start - timing.before
        return max(source, 0.0), target

    def checked(self) -> Self:
        """Itself, of one of SPLITS. ValueError or EgoGenError say what of it is no text or name."""
        for name, value in vars(self).items():
            if isinstance(value, str) and re.search(r"[\x00-\x1f]", value):
                raise ValueError(f"{name} {value!r} holds a control character")
        safe_relative(self.clip, "clip", VIDEOS)
        identifier(self.id, "id")
        if self.split.lower() not in SPLIT_NAMES:
            raise ValueError(f"split {self.split!r}, expected {', '.join(SPLIT_NAMES)}")
        return replace(self, split=SPLIT_NAMES[self.split.lower()])


@dataclass(frozen=True)
class Skipped:
    """A row that is left out."""

    where: str  # the row or entry in its file, as a person finds it
    reason: str  # one of the form's few, by which they are counted: "no PNR frame"


@dataclass(frozen=True)
class Table:
    """What a file of annotations holds, in its order."""

    rows: list[Row]
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """What readers of forms are told; each looks at what concerns it."""

    split: str | None = None  # of rows without one; None: as the file's name says, else train
    timing: Timing = field(default_factory=Timing)
    pre: str = "pre_15"  # Ego4D's critical frame that is the source
    on: str = "video"  # or "clip": whose times Ego4D's are
    video_info: Path | None = None  # table of durations, rates or names of the videos


def usual_rate(rate: Fraction) -> Fraction:
    """The whole number, or 1000/1001 of one, that a rounded rate means; any other as it is."""
    usual = Fraction(round(rate)), Fraction(round(rate * 1.001) * 1000, 1001)
    near = (one for one in usual if abs(one - rate) < rate / 10**6)  # Matroska rounds 60000/1001
    return next(near, rate)


def epic_rate(clip: str) -> float | None:
    """Of EPIC-KITCHENS' extracted frames: 60 a second of 2018's videos (P01_11), later 50."""
    known = re.fullmatch(r"P[0-9]{2}_([0-9])?[0-9]{2}", clip)
    return (50.0 if known[1] else 60.0) if known else None


def split_of_file(path: Path, options: Options) -> str:
    """The split that was asked for, else the one in the file's name, else train."""
    words = re.split("[^a-z]+", path.stem.lower())  # EPIC_100_retrieval_train has no "val"
    named = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]
    return options.split or (named[-1] if named else SPLITS[0])


def with_clip_ids(path: Path, rows: Sequence[Row], ids: Mapping[str, str]) -> list[Row]:
    """Rows of the table with the ids of their clips. Raises EgoGenError where two are the same."""
    clips: dict[str, str] = {}  # id -> clip
    for clip, id_ in ids.items():
        if clips.setdefault(id_, clip) != clip:
            raise EgoGenError(f"{path}: clip {clip} has the name of {clips[id_]}")
    rates: dict[str, float | None] = {}
    for row in rows:
        if rates.setdefault(row.clip, row.fps) != row.fps:
            said = f"fps {rates[row.clip]} and {row.fps}"
            raise EgoGenError(f"{path}: clip {row.clip} has {said}, expected one")
    return [replace(row, clip_id=ids[row.clip]) for row in rows]

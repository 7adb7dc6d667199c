"""The table of actions: a CSV with a row a pair, checked completely before any work."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from egogen.errors import EgoGenError
from egogen.layout import SPLITS

NEEDED = ("clip", "start", "action")
KNOWN = (*NEEDED, "end", "contact", "split", "id", "description")
SHOWN = 20  # bad rows that an error lists


@dataclass(frozen=True)
class Timing:
    """Which frames make a pair, in seconds.

    The source is `before` ahead of the start. The target is at the contact where the row has one
    (Ego4D's point of no return), else at `fraction` of the way from start to end where it has an
    end (as Epic-Kitchens' rows do), else `after` behind the start.
    """

    before: float = 0.25
    fraction: float = 0.6
    after: float = 1.0


@dataclass(frozen=True)
class Row:
    """An action: where it is seen, what it is called, and what the pair's files are named by."""

    clip: str  # as in the table: a video or folder of frames below --videos
    start: float
    action: str
    end: float | None = None
    contact: float | None = None
    split: str = "train"
    id: str = ""
    description: str = ""

    @property
    def clip_id(self) -> str:
        return Path(self.clip).stem if Path(self.clip).suffix else Path(self.clip).name

    def times(self, timing: Timing) -> tuple[float, float]:
        """(source, target) in seconds; the source not before the clip's begin."""
        if self.contact is not None:
            target = self.contact
        elif self.end is not None:
            target = self.start + timing.fraction * (self.end - self.start)
        else:
            target = self.start + timing.after
        return max(self.start - timing.before, 0.0), target


def seconds(text: str) -> float:
    """'83.2', '1:23.2' or '0:01:23.2' -> 83.2. Raises ValueError."""
    value = 0.0
    for part in text.strip().split(":"):
        number = float(part)
        if not math.isfinite(number) or number < 0:
            raise ValueError(text)
        value = value * 60 + number
    return value


def read_table(path: Path, split: str) -> list[Row]:
    """Rows of the CSV; `split` is for those without one.

    Raises EgoGenError that names the columns that are missing or not known, or all bad rows.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, lines = reader.fieldnames or [], [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EgoGenError(f"{path}: not a CSV table ({error})") from None
    missing = [name for name in NEEDED if name not in columns]
    unknown = [name for name in columns if name not in KNOWN]
    if missing or unknown:
        raise EgoGenError(
            f"{path}: columns are {', '.join(columns) or 'none'}; expected {', '.join(NEEDED)}, "
            f"and optionally {', '.join(KNOWN[len(NEEDED) :])}"
        )
    rows: list[Row] = []
    bad: list[str] = []
    clips: dict[str, str] = {}  # id -> clip
    taken: set[tuple[str, str]] = set()
    counts: dict[str, int] = {}  # clip -> number of its last row
    for number, line in lines:
        try:
            row = _row(line, split, counts)
            if clips.setdefault(row.clip_id, row.clip) != row.clip:
                raise ValueError(f"clip {row.clip} has the name of {clips[row.clip_id]}")
            if (row.clip_id, row.id) in taken:
                raise ValueError(f"id {row.id} stands twice in clip {row.clip_id}")
            taken.add((row.clip_id, row.id))
            rows.append(row)
        except ValueError as error:
            bad.append(f"row {number}: {error}")
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise EgoGenError(f"{path}: {'; '.join(bad[:SHOWN])}{more}")
    if not rows:
        raise EgoGenError(f"{path}: no rows, expected one a pair")
    return rows


def _check_texts(values: dict[str, str]) -> None:
    for name in NEEDED:
        if not values[name]:
            raise ValueError(f"{name} is empty")
    for name, value in values.items():
        if any(ord(character) < 32 for character in value):
            raise ValueError(f"{name} {value!r} holds a control character")


def _row(line: dict, split: str, counts: dict[str, int]) -> Row:
    if None in line or None in line.values():
        raise ValueError("has more or fewer fields than the header")
    values = {name: value.strip() for name, value in line.items()}
    _check_texts(values)
    times = {}
    for name in ("start", "end", "contact"):
        if values.get(name):
            try:
                times[name] = seconds(values[name])
            except ValueError:
                raise ValueError(f"{name} {values[name]!r} is not a time") from None
    for name in ("end", "contact"):
        if times.get(name, math.inf) <= times["start"]:
            raise ValueError(f"{name} {times[name]:g} is not after start {times['start']:g}")
    clip = values["clip"]
    if clip.startswith("/") or ".." in Path(clip).parts or "\\" in clip:
        raise ValueError(f"clip {clip!r} leaves the folder of the videos")
    chosen = values.get("split") or split
    if chosen not in SPLITS:
        raise ValueError(f"split {chosen!r}, expected {' or '.join(SPLITS)}")
    counts[clip] = counts.get(clip, -1) + 1
    name = values.get("id") or str(counts[clip])
    if "/" in name or "\\" in name or name in (".", ".."):
        raise ValueError(f"id {name!r} cannot name a folder")
    end, contact = times.get("end"), times.get("contact")
    text = values.get("description", "")
    return Row(clip, times["start"], values["action"], end, contact, chosen, name, text)

"""The table of actions: a CSV with a row a pair, checked completely before any work."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from egogen.errors import EgoGenError, listed
from egogen.layout import SPLITS

NEEDED = ("clip", "start", "action")
KNOWN = (*NEEDED, "end", "contact", "split", "id", "description")
# 1:02:03.5, 75:30 or 83.2; bounded, so that any unit of time holds it
TIME = re.compile(r"(?:(?:([0-9]{1,6}):)?([0-9]{1,6}):)?([0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)")
AS = "expected seconds or hours:minutes:seconds with a point, as 83.2 or 1:02:03.5 (no frames)"


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
    clip_id: str = ""  # name of the clip in the dataset, known when its video has been found

    def as_written(self) -> dict[str, Any]:
        """What the table says of it: folders made before hold the same."""
        return {name: value for name, value in asdict(self).items() if name != "clip_id"}

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
    match = TIME.fullmatch(text.strip())
    if not match:
        raise ValueError(text)
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    if match[2] and rest >= 60 or match[1] and minutes >= 60:
        raise ValueError(text)
    return (hours * 60 + minutes) * 60 + rest


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, value by column); blanks, empty last columns and empty rows left out."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)  # spreadsheets of some languages write ";"
            reader = csv.reader(file, skipinitialspace=True, delimiter=delimiter)
            lines = [(reader.line_num, [value.strip() for value in line]) for line in reader]
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EgoGenError(f"{path}: not a CSV table in UTF-8 ({error})") from None
    lines = [(number, line) for number, line in lines if any(line)]
    columns = [name.casefold() for name in _cut(lines[0][1])] if lines else []
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice or not set(NEEDED) <= set(columns) <= set(KNOWN):
        raise EgoGenError(
            f"{path}: columns are {', '.join(columns) or 'none'}; expected {', '.join(NEEDED)}, "
            f"and optionally {', '.join(KNOWN[len(NEEDED) :])}, each once"
        )
    bad = [number for number, line in lines if not len(_cut(line)) <= len(columns) <= len(line)]
    if bad:
        raise EgoGenError(f"{path}: row {bad[0]}: has more or fewer fields than the header")
    return [(number, dict(zip(columns, line, strict=False))) for number, line in lines[1:]]


def _cut(line: list[str]) -> list[str]:
    """Without empty fields at its end."""
    return line[: max((k for k, value in enumerate(line, 1) if value), default=0)]


def read_table(path: Path, split: str) -> list[Row]:
    """Rows of the CSV; `split` is for those without one.

    Raises EgoGenError that names the columns that are missing or not known, or all bad rows.
    """
    rows: list[Row] = []
    bad: list[str] = []
    taken: set[tuple[str, str]] = set()
    counts: dict[str, int] = {}  # clip -> number of its last row
    for number, line in _lines(path):
        try:
            row = _row(line, split, counts)
            if (row.clip, row.id) in taken:
                raise ValueError(f"id {row.id} stands twice in clip {row.clip}")
            taken.add((row.clip, row.id))
            rows.append(row)
        except ValueError as error:
            bad.append(f"row {number}: {error}")
    if bad:
        raise EgoGenError(f"{path}: {listed(bad, between='; ')}")
    if not rows:
        raise EgoGenError(f"{path}: no rows, expected one a pair")
    return rows


def with_clip_ids(path: Path, rows: Sequence[Row], ids: Mapping[str, str]) -> list[Row]:
    """Rows of the table with the ids of their clips. Raises EgoGenError where two are the same."""
    clips: dict[str, str] = {}  # id -> clip
    for clip, id_ in ids.items():
        if clips.setdefault(id_, clip) != clip:
            raise EgoGenError(f"{path}: clip {clip} has the name of {clips[id_]}")
    return [replace(row, clip_id=ids[row.clip]) for row in rows]


def _check_texts(values: dict[str, str]) -> None:
    for name in NEEDED:
        if not values[name]:
            raise ValueError(f"{name} is empty")
    for name, value in values.items():
        if any(ord(character) < 32 for character in value):
            raise ValueError(f"{name} {value!r} holds a control character")


def _row(values: dict[str, str], split: str, counts: dict[str, int]) -> Row:
    _check_texts(values)
    times = {}
    for name in ("start", "end", "contact"):
        if values.get(name):
            try:
                times[name] = seconds(values[name])
            except ValueError:
                raise ValueError(f"{name} {values[name]!r} is not a time, {AS}") from None
    for name in ("end", "contact"):
        if times.get(name, math.inf) <= times["start"]:
            raise ValueError(f"{name} {times[name]:g} is not after start {times['start']:g}")
    clip = values["clip"]
    if "\\" in clip or not Path(clip).parts:
        raise ValueError(f"clip {clip!r}, expected a name with / between folders")
    if clip.startswith("/") or ".." in Path(clip).parts:
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

"""The project's own table of actions: a CSV with a row a pair, checked before any work."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from egogen.atomic import write_csv
from egogen.build.records import Records, read_csv
from egogen.build.rows import Options, Row, Table, Timing
from egogen.errors import EgoGenError, listed
from egogen.layout import SPLITS

NEEDED = ("clip", "action")
TIMES = ("start", "end", "contact", "source", "target")
KNOWN = (*NEEDED, *TIMES, "split", "id", "description", "fps")
WRITTEN = ("clip", "id", "split", "action", "source", "target", "description")
# 1:02:03.5, 75:30 or 83.2; bounded, so that any unit of time holds it
TIME = re.compile(r"(?:(?:([0-9]{1,6}):)?([0-9]{1,6}):)?([0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)")
AS = "expected seconds or hours:minutes:seconds with a point, as 83.2 or 1:02:03.5 (no frames)"


def seconds(text: str) -> float:
    """'83.2', '1:23.2' or '0:01:23.2' -> 83.2. Raises ValueError."""
    match = TIME.fullmatch(text.strip())
    if not match:
        raise ValueError(text)
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    if match[2] and rest >= 60 or match[1] and minutes >= 60:
        raise ValueError(text)
    return (hours * 60 + minutes) * 60 + rest


def write_table(path: Path, rows: Sequence[Row], timing: Timing) -> None:
    """The table as `read_table` takes it back, with the very times of both frames.

    Raises EgoGenError where the target is the last frame of a video that nobody has looked at.
    """
    lines: list[Sequence[str]] = [WRITTEN]
    for row in rows:
        times = [np.format_float_positional(time, min_digits=4) for time in row.times(timing)]
        if "inf" in times:
            raise EgoGenError(f"clip {row.clip}: expected --video-info, which says when it ends")
        lines.append([row.clip, row.id, row.split, row.action, *times, row.description])
    write_csv(path, lines)


def read_table(path: Path, options: Options) -> Table:
    """Rows of the CSV, all of them.

    Raises EgoGenError that names the columns that are missing or not known, or all bad rows.
    """
    split = options.split or SPLITS[0]
    return checked(path, read_csv(path, NEEDED, KNOWN), lambda values: _row(values, split))


def checked(path: Path, records: Records, make: Callable[[dict[str, Any]], Row]) -> Table:
    """What `make` gives of each record; the number within its clip is the id of a row without one.

    Raises EgoGenError that names all that `make` refuses, and ids twice.
    """
    rows: list[Row] = []
    bad: list[str] = []
    taken: dict[str, set[str]] = defaultdict(set)  # clip -> ids of its rows so far
    for where, values in records:
        try:
            row = make(values)
            ids = taken[row.clip]
            row = replace(row, id=row.id or str(len(ids))).checked()
            if row.id in ids:
                raise ValueError(f"id {row.id} stands twice in clip {row.clip}")
            ids.add(row.id)
            rows.append(row)
        except (ValueError, EgoGenError) as error:
            bad.append(f"{where}: {error}")
    if bad:
        raise EgoGenError(f"{path}: {listed(bad, between='; ')}")
    return Table(rows)


def _row(values: dict[str, str], split: str) -> Row:
    for name in NEEDED:
        if not values[name]:
            raise ValueError(f"{name} is empty")
    said = {name: value for name, value in values.items() if value}
    known: dict[str, Any] = {"start": None, "split": split, **said, **_times(values)}
    if rate := values.get("fps"):
        if not TIME.fullmatch(rate) or ":" in rate or not float(rate):
            raise ValueError(f"fps {rate!r}, expected frames a second")
        known["fps"] = float(rate)
    return Row(**known)


def _times(values: dict[str, str]) -> dict[str, Any]:
    """Those that the row has. Raises ValueError for one that is none or out of order."""
    times = {}
    for name in TIMES:
        if values.get(name):
            try:
                times[name] = seconds(values[name])
            except ValueError:
                raise ValueError(f"{name} {values[name]!r} is not a time, {AS}") from None
    if "start" not in times and not {"source", "target"} <= times.keys():
        raise ValueError("start is empty, expected a time (or both of source and target)")
    for early, late in (("start", "end"), ("start", "contact"), ("source", "target")):
        if early in times and times.get(late, float("inf")) <= times[early]:
            raise ValueError(f"{late} {times[late]:g} is not after {early} {times[early]:g}")
    return times

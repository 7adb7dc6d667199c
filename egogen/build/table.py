"""The project's own tables, checked before any work: a CSV of actions, and of ready pairs (before
image, after image, action) with images as files or in archives.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from egogen import SPLITS, EgoGenError, listed, write_csv
from egogen.actions import safe_relative
from egogen.build.clips import TAR
from egogen.build.forms.reading import FIELDS, values_of
from egogen.build.records import Records, read_csv, read_records
from egogen.build.rows import TIME, VIDEOS, Options, Row, Table, Timing, seconds, split_of_file

NEEDED = ("clip", "action")
TIMES = ("start", "end", "contact", "source", "target")
KNOWN = (*NEEDED, *TIMES, "split", "id", "description", "fps")
WRITTEN = ("clip", "id", "split", "action", "source", "target", "description")
AS = "expected seconds or hours:minutes:seconds with a point, as 83.2 or 1:02:03.5 (no frames)"


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


def read_pairs(path: Path, options: Options) -> Table:
    """Rows of a .jsonl, .csv or .parquet file, all of them. Raises EgoGenError as `read_table`."""
    split = split_of_file(path, options)
    return checked(path, read_records(path), lambda values: _pair(values, split))


def _pair(values: dict[str, Any], split: str) -> Row:
    texts = values_of({name.casefold(): value for name, value in values.items()}, "pairs")
    for name in ("before", "after", "action"):
        if not texts[name]:
            raise ValueError(f"no {name}, expected one of {', '.join(FIELDS['pairs'][name][1:])}")
    tar = texts["tar"] and f"{texts['tar']}/"
    before, after = tar + texts["before"], tar + texts["after"]
    for image in (before, after):
        safe_relative(image, "image", VIDEOS)
    tops = {PurePosixPath(image).parts[0] for image in (before, after) if "/" in image}
    clip = texts["clip"] or (TAR.sub("", tops.pop()) if len(tops) == 1 else "pairs")
    safe_relative(clip, "clip", VIDEOS)
    known: dict[str, Any] = {name: texts[name] for name in ("action", "id", "description")}
    named = "_".join(PurePosixPath(clip).parts)
    return Row(named, None, split=texts["split"] or split, before=before, after=after, **known)

"""The result files of one folder of generated frames, written after every metric.

parts/NAME.json  one metric: what it was computed from, and all that it gave; what a rerun keeps
blip.json ...    captions, as the released script leaves them
metric.json      released keys with the released definitions, own keys beside them; flat
per_sample.csv   clip, action, frame and one column a per-frame value
inputs.json      what each metric was computed from, and a digest of every ground truth frame

All other files are made from the parts, so that nothing stale is ever merged.
"""

import csv
import functools
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from egogen import EgoGenError, read_json, read_object, write_csv, write_json
from metrics.frame_pairs import Pair
from metrics.registry import MEASURE, METRICS

METRIC_FILE, SAMPLE_FILE, INPUT_FILE = "metric.json", "per_sample.csv", "inputs.json"
PARTS = "parts"
KEY_COLUMNS = ("clip", "action", "frame")
# What parts hold; another number, as after a change of what a metric means, has them remade.
FORMAT = 1


def default_folder(gen_path: str | os.PathLike) -> Path:
    """`metric` beside the folder of generated frames, whether or not its path ends in a slash."""
    return Path(os.path.abspath(gen_path)).parent / "metric"


def content_digest(path: Path) -> str:
    """Hex digest of a file, or of the names and contents of every file of a folder.

    A file of gigabytes is read once a process, as long as its size and time stay.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(f"{path.name}\0".encode())
        with open(path, "rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


@dataclass
class Part:
    """What one metric gave; `columns[key][i]` belongs to pair i."""

    identity: dict
    overall: dict[str, float | int | None]
    columns: dict[str, list[float]]
    intervals: dict[str, list[float] | None]  # key + "_ci95" -> [low, high]
    resampled: dict[str, list[float]]  # for comparisons, of keys without a column
    documents: dict[str, Any]  # file name beside metric.json -> its JSON value


def _to_json(values: Sequence[float]) -> list:
    """JSON has no nan and no infinity."""
    return [
        float(value) if math.isfinite(value) else None if math.isnan(value) else str(value)
        for value in values
    ]


def _read_part(path: Path, frames: int) -> Part | None:
    """A part as it was written; None for one that is damaged or of another format."""
    try:
        found = read_json(path)
        if found.pop("format") != FORMAT:
            return None
        for key, column in found["columns"].items():  # as `_to_json` wrote it
            found["columns"][key] = [math.nan if x is None else float(x) for x in column]
        part = Part(**found)
    except (EgoGenError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return part if all(len(column) == frames for column in part.columns.values()) else None


@dataclass
class Results:
    """What is known so far of `pairs`. `counts` go into metric.json as they are."""

    folder: Path
    pairs: Sequence[Pair]
    counts: dict[str, int] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    def holds(self, metric: str, identity: dict) -> bool:
        return metric in self.parts and self.parts[metric].identity == identity

    def add(self, metric: str, part: Part) -> None:
        """Take over one metric's values; the part is on disk before any other file changes."""
        content = {"format": FORMAT, **asdict(part)}
        content["columns"] = {key: _to_json(column) for key, column in part.columns.items()}
        write_json(self.folder / PARTS / f"{metric}.json", content, indent=None)
        self.parts[metric] = part
        self.write()

    def merged(self, kind: str) -> dict[str, Any]:
        """The `kind` of all parts ("overall", "columns", "intervals"), in the order of METRICS."""
        parts = [self.parts[name] for name in METRICS if name in self.parts]
        return {key: value for part in parts for key, value in getattr(part, kind).items()}

    def write(self) -> None:
        """Make all files but the parts anew."""
        for part in self.parts.values():
            for name, document in part.documents.items():
                write_json(self.folder / name, document)
        columns = self.merged("columns")
        rows: list[list[str]] = [[*KEY_COLUMNS, *columns]]
        for entry, *values in zip((p.entry for p in self.pairs), *columns.values(), strict=True):
            cells = ["" if math.isnan(value) else repr(float(value)) for value in values]
            rows.append([entry.clip, entry.action_id, entry.image_1, *cells])
        write_csv(self.folder / SAMPLE_FILE, rows)
        figures = {**self.counts, **self.merged("overall"), **self.merged("intervals")}
        write_json(self.folder / METRIC_FILE, figures)
        metrics = {
            name: {"figures": list(self.parts[name].overall), "from": self.parts[name].identity}
            for name in METRICS
            if name in self.parts
        }
        targets = {pair.key: pair.target_digest for pair in self.pairs}
        write_json(self.folder / INPUT_FILE, {"metrics": metrics, "targets": targets})


def load(folder: str | os.PathLike, pairs: Sequence[Pair], identity: str) -> Results:
    """Results of an earlier run over the same frames, or empty ones: nothing else is ever merged.

    `identity` is the population's, and stands under "frames" in that of every part.
    """
    results = Results(Path(folder), pairs)
    for name in METRICS:
        path = results.folder / PARTS / f"{name}.json"
        part = _read_part(path, len(pairs)) if path.exists() else None
        if part and part.identity.get("frames") == identity:
            results.parts[name] = part
    return results


def read_table(path: str | os.PathLike) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """per_sample.csv -> ({frame: {column: value}}, {frame: clip}); empty cells are left out."""
    samples, clips = {}, {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                clip, _, frame = (row.pop(name) for name in KEY_COLUMNS)
                cells = {name: cell for name, cell in row.items() if cell not in ("", None)}
                samples[frame] = {name: float(cell) for name, cell in cells.items()}
                clips[frame] = clip
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such file, expected the per-sample figures") from None
    except (UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise EgoGenError(f"{path}: not a table of per-sample figures ({error})") from None
    return samples, clips


def read_figures(folder: Path) -> dict[str, Any]:
    """metric.json of a folder; EgoGenError naming the command that writes it if it is not there."""
    path = folder / METRIC_FILE
    if not path.exists():
        raise EgoGenError(f"{folder}: holds no {METRIC_FILE}; measure first: {MEASURE}")
    return read_object(path, "an object of figures")

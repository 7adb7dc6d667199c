"""The result files of one folder of generated frames, written after every metric.

metric.json      released keys with the released definitions, own keys beside them; flat
per_sample.csv   clip, action, frame and one column a per-frame value
inputs.json      what each metric was computed from, so that nothing stale is ever merged
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from egogen.atomic import read_json, write_json, write_text
from egogen.errors import EgoGenError
from metrics.frame_pairs import Pair
from metrics.registry import Measured

METRIC_FILE, SAMPLE_FILE, INPUT_FILE = "metric.json", "per_sample.csv", "inputs.json"
KEY_COLUMNS = ("clip", "action", "frame")


def default_folder(gen_path: str | os.PathLike) -> Path:
    """`metric` beside the folder of generated frames, whether or not its path ends in a slash."""
    return Path(os.path.abspath(gen_path)).parent / "metric"


@dataclass
class Results:
    """What is known so far; `columns[name][i]` belongs to `pairs[i]`."""

    folder: Path
    pairs: Sequence[Pair]
    overall: dict = field(default_factory=dict)
    columns: dict[str, list[float]] = field(default_factory=dict)
    inputs: dict[str, dict] = field(default_factory=dict)

    def holds(self, metric: str, identity: dict) -> bool:
        return self.inputs.get(metric, {}).get("from") == identity

    def add(self, metric: str, identity: dict, measured: Measured) -> None:
        """Take over one metric's values and write all three files."""
        self.drop(metric)
        self.overall.update(measured.overall)
        self.columns.update(measured.columns)
        keys = {"overall": list(measured.overall), "columns": list(measured.columns)}
        self.inputs[metric] = {"from": identity, **keys}
        self.write()

    def drop(self, metric: str) -> None:
        record = self.inputs.pop(metric, {})
        for key in record.get("overall", ()):
            self.overall.pop(key, None)
        for name in record.get("columns", ()):
            self.columns.pop(name, None)

    def write(self) -> None:
        # The record of what is valid comes last: killed in between, a metric is computed again.
        write_text(self.folder / SAMPLE_FILE, self._csv())
        write_json(self.folder / METRIC_FILE, self.overall)
        write_json(self.folder / INPUT_FILE, self.inputs)

    def _csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*KEY_COLUMNS, *self.columns])
        for number, pair in enumerate(self.pairs):
            values = (column[number] for column in self.columns.values())
            cells = ("" if math.isnan(value) else repr(float(value)) for value in values)
            entry = pair.entry
            writer.writerow([entry.clip, entry.action_id, entry.image_1, *cells])
        return out.getvalue()


def read_samples(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """per_sample.csv -> {frame: {column: value}}; empty cells are left out."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            row["frame"]: {
                name: float(cell)
                for name, cell in row.items()
                if name not in KEY_COLUMNS and cell not in ("", None)
            }
            for row in rows
        }
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such file, expected the per-sample figures") from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise EgoGenError(f"{path}: not a table of per-sample figures ({error})") from None


def load(folder: str | os.PathLike, pairs: Sequence[Pair], identity: str) -> Results:
    """Results of an earlier run over the same files, or empty ones: nothing else is ever merged.

    `identity` is the population's. Values of another population are left out and then replaced.
    """
    results = Results(Path(folder), pairs)
    record = results.folder / INPUT_FILE
    if not record.exists():
        return results
    inputs = read_json(record)
    same = {
        name: entry
        for name, entry in inputs.items()
        if isinstance(entry, dict) and entry.get("from", {}).get("frames") == identity
    }
    if not same:
        return results
    overall = read_json(results.folder / METRIC_FILE)
    samples = read_samples(results.folder / SAMPLE_FILE)
    for name, entry in same.items():
        results.inputs[name] = entry
        results.overall.update({key: overall.get(key) for key in entry["overall"]})
        for column in entry["columns"]:
            results.columns[column] = [
                samples.get(pair.key, {}).get(column, math.nan) for pair in pairs
            ]
    return results

"""Every metric, a row each in registry.yaml: its name, its keys in metric.json, the files it needs.

A metric is a module in `metrics/measures/` with a function `measure(pairs, settings) -> Measured`,
and a row there that names the function. Everything that is made of its numbers (result files,
intervals, comparison, report) reads the row and the `Measured`, and knows no metric by name but
FID and PSNR. `pairs` is a list of `metrics.frame_pairs.Pair`; values in a `Measured` stand in the
order of the pairs, and are plain Python floats.
"""

import importlib.util
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from egogen import DESCRIPTION_KEY, EgoGenError

WEIGHTS = Path(__file__).resolve().parent / "weights"
FETCH = "bash scripts/download_metric_weights.sh"
MEASURE = "python metrics/all_metrics_in_one.py --help"  # what writes results
EGOVLP = "egovlp"
EGOVLP_FILES = {"ego4d": "egovlp.pth", "epickitchen": "epic_mir_plus.pth"}


@dataclass(frozen=True)
class Key:
    """How a key of metric.json is read: name for people, meaning, unit, direction, digits."""

    title: str
    meaning: str
    unit: str = ""
    higher_is_better: bool = True
    digits: int = 2

    @property
    def label(self) -> str:
        """Title and unit, as in "PSNR, dB"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def arrow(self) -> str:
        """The direction in which it is better."""
        return "\N{UPWARDS ARROW}" if self.higher_is_better else "\N{DOWNWARDS ARROW}"


@dataclass(frozen=True)
class Settings:
    """How to measure. `weights` is one flat folder; `llava_key` names the descriptions' field.

    An empty `device` is a GPU where there is one.
    """

    dataset: str
    weights: Path = WEIGHTS
    device: str = "cpu"
    batch_size: int = 8
    workers: int = 2
    llava_key: str = DESCRIPTION_KEY


@dataclass
class Measured:
    """What one metric found.

    overall    key of metric.json -> number, or None where no finite one exists
    columns    key -> one value a pair, in the order of the pairs; nan where a pair has none,
               inf for PSNR of equal images. The column of a key of `overall` has its name, and
               `overall` is the mean of the finite values; FID, `psnr_pooled` and counts have none.
    features   only of FID: "generated" and "target" -> (n, 2048) float64 Inception features, row i
               of pair i, for intervals by resampling; not written to any file
    documents  file name beside metric.json -> JSON value: the captions, clip -> action -> text,
               in blip.json and blip-l.json. `metrics.results` writes them
    """

    overall: dict[str, float | int | None]
    columns: dict[str, list[float]] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    function      dotted path of what is called with (pairs, settings) -> Measured
    keys          key of metric.json -> how it is read
    files         weight files below one flat folder; `EGOVLP` stands for the one of the dataset
    package       a library that it needs besides torch
    group         name that stands for several metrics in `--metrics`
    needs_source  it looks at the source frames
    needs_text    it compares with the descriptions of the edit file
    documents     files that it leaves beside metric.json
    """

    name: str
    title: str
    function: str
    keys: Mapping[str, Key] = field(default_factory=dict)
    files: Sequence[str] = ()
    package: str = ""
    group: str = ""
    needs_source: bool = False
    needs_text: bool = False
    documents: Sequence[str] = ()

    def weight_files(self, settings: Settings) -> list[Path]:
        """Where its weights lie, found or not; a safetensors file of the same stem serves too."""
        names = [EGOVLP_FILES[settings.dataset] if name == EGOVLP else name for name in self.files]
        paths = [settings.weights / name for name in names]
        both = [(path, path.with_suffix(".safetensors")) for path in paths]
        return [next(filter(Path.exists, places), places[0]) for places in both]

    def obstacle(self, settings: Settings, has_source: bool) -> str | None:
        """Why it cannot be computed here, in a line, or None."""
        missing = [path.name for path in self.weight_files(settings) if not path.exists()]
        if missing:
            folder = settings.weights
            return f"needs {', '.join(missing)} in {folder}; fetch with: {FETCH} {folder}"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"needs the package {self.package}; install with: pip install -e '.[metrics]'"
        if self.needs_source and not has_source:
            return "needs the source frames: a folder val beside val_gt_for_metric"
        return None

    def measure(self, pairs: Sequence, settings: Settings) -> Measured:
        """Values of all pairs; only for a metric without obstacle."""
        return pkgutil.resolve_name(self.function)(pairs, settings)


_ROWS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
for _row in _ROWS.values():
    _row["keys"] = {key: Key(**read) for key, read in _row["keys"].items()}
METRICS = {name: Metric(name, **row) for name, row in _ROWS.items()}
KEYS = {name: key for metric in METRICS.values() for name, key in metric.keys.items()}
GROUPS = {
    group: tuple(metric.name for metric in METRICS.values() if metric.group == group)
    for group in ("lpips", "blip")
}


def choose(names: str) -> list[Metric]:
    """A comma-separated list -> metrics in their own order; groups stand for all of theirs."""
    wanted: set[str] = set()
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in METRICS and name not in GROUPS:
            known = ", ".join((*METRICS, *GROUPS))
            raise EgoGenError(f"--metrics: no metric {name!r}, expected some of: {known}")
        wanted.update(GROUPS.get(name, (name,)))
    if not wanted:
        raise EgoGenError(f"--metrics {names!r}: names no metric, expected for example fid,psnr")
    return [metric for name, metric in METRICS.items() if name in wanted]


def finite_mean(values: Sequence[float]) -> float | None:
    """Mean of the finite values, None without any; exact, so that order never matters."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None

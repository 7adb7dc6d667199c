"""Every metric: its name, its keys in metric.json, the files it needs, and where it is computed.

The interface between the networks and everything that is made of their numbers (results, intervals,
comparison, report) is `Metric.measure(pairs, settings) -> Measured`. `pairs` are those of
`metrics.frame_pairs`, in their order; a `Measured` holds, index by index, a value for each pair,
which so is keyed by (clip, action, frame) of `pair.entry`. All numbers there are plain floats.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egogen.actions import DESCRIPTION_KEY
from egogen.errors import EgoGenError

WEIGHTS = Path(__file__).resolve().parent / "weights"
FETCH = "bash scripts/download_metric_weights.sh"
EGOVLP = "egovlp"
EGOVLP_FILES = {"ego4d": "egovlp.pth", "epickitchen": "epic_mir_plus.pth"}
TEXT = (EGOVLP, "distilbert-base-uncased", "bert-base-uncased")


@dataclass(frozen=True)
class Key:
    """How a key of metric.json is read: name for people, unit, direction, meaning."""

    title: str
    meaning: str
    unit: str = ""
    higher_is_better: bool = True
    digits: int = 2


@dataclass(frozen=True)
class Settings:
    """How to measure. `weights` is one flat folder; `llava_key` names the descriptions' field."""

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
               inf for PSNR of equal pictures. The column of a key of `overall` has its name, and
               `overall` is the mean of the finite values; FID, `psnr_pooled` and counts have none.
    features   FID alone: "generated" and "target" -> (n, 2048) float64 Inception features, row i
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
    """`function` is `module.name`, called with (pairs, settings) -> Measured.

    `files` are weight files below one flat folder; `EGOVLP` stands for the one of the dataset.
    `documents` are the files that it leaves beside metric.json. `needs_text`: it compares with
    the descriptions of the edit file.
    """

    name: str
    title: str
    function: str
    files: tuple[str, ...] = ()
    package: str = ""
    needs_source: bool = False
    needs_text: bool = False
    documents: tuple[str, ...] = ()

    def weight_files(self, settings: Settings) -> list[Path]:
        """Where its weights lie, found or not; a safetensors file of the same stem serves too."""
        names = [EGOVLP_FILES[settings.dataset] if name == EGOVLP else name for name in self.files]
        paths = [settings.weights / name for name in names]
        others = [path.with_suffix(".safetensors") for path in paths]
        return [
            other if other.exists() and not path.exists() else path
            for path, other in zip(paths, others, strict=True)
        ]

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
        module, function = self.function.rsplit(".", 1)
        return getattr(importlib.import_module(module), function)(pairs, settings)


# In the order in which the released script computes them.
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "fid",
            "FID",
            "metrics.measures.frechet.measure",
            ("pt_inception-2015-12-05-6726825d.pth",),
            "pytorch_fid",
        ),
        Metric("psnr", "PSNR", "metrics.measures.psnr.measure"),
        Metric(
            "psnr_changed",
            "PSNR of the changed region",
            "metrics.measures.psnr.measure_changed",
            needs_source=True,
        ),
        Metric(
            "lpips_squeeze",
            "LPIPS SqueezeNet",
            "metrics.measures.perceptual.measure_squeeze",
            ("squeezenet1_1-b8a52dc0.pth",),
            "torchmetrics",
        ),
        Metric(
            "lpips_vgg",
            "LPIPS VGG16",
            "metrics.measures.perceptual.measure_vgg",
            ("vgg16-397923af.pth",),
            "torchmetrics",
        ),
        Metric(
            "lpips_alex",
            "LPIPS AlexNet",
            "metrics.measures.perceptual.measure_alex",
            ("alexnet-owt-7be5be79.pth",),
            "torchmetrics",
        ),
        Metric(
            "clip", "CLIP", "metrics.measures.clip_image.measure", ("ViT-L-14.pt",), "open_clip"
        ),
        Metric("egovlp", "EgoVLP", "metrics.measures.egovlp.measure", (EGOVLP,), "torchvision"),
        Metric(
            "egovlp_plus",
            "EgoVLP+",
            "metrics.measures.egovlp.measure_plus",
            (EGOVLP,),
            "torchvision",
            needs_source=True,
        ),
        Metric(
            "blip_base",
            "BLIP-B",
            "metrics.measures.captions.measure_base",
            ("model_base_caption_capfilt_large.pth", *TEXT),
            "transformers",
            needs_text=True,
            documents=("blip.json",),
        ),
        Metric(
            "blip_large",
            "BLIP-L",
            "metrics.measures.captions.measure_large",
            ("model_large_caption.pth", *TEXT),
            "transformers",
            needs_text=True,
            documents=("blip-l.json",),
        ),
    )
}
_LPIPS = "perceptual distance, {} features; pictures given in [0, 1], as released"
_BLIP = "cosine of EgoVLP embeddings of the description and of BLIP's ({}) caption of the frame"
_SCALED = "the same with pictures in [-1, 1], as the metric is defined"
KEYS = {
    "fid": Key("FID", "distance of two sets of Inception features", "", False),
    "psnr": Key("PSNR", "mean of the frames' values", "dB"),
    "psnr_pooled": Key("PSNR, pooled", "of the mean error of all frames", "dB"),
    "psnr_changed": Key("PSNR, changed region", "where source and ground truth differ", "dB"),
    "psnr_changed_gain": Key(
        "Gain over copying", "in the changed region, against the source", "dB"
    ),
    "lpips_squeeze": Key("LPIPS SqueezeNet", _LPIPS.format("SqueezeNet"), "", False, 4),
    "lpips_squeeze_scaled": Key("LPIPS SqueezeNet, scaled", _SCALED, "", False, 4),
    "lpips_vgg": Key("LPIPS VGG16", _LPIPS.format("VGG16"), "", False, 4),
    "lpips_vgg_scaled": Key("LPIPS VGG16, scaled", _SCALED, "", False, 4),
    "lpips_alex": Key("LPIPS AlexNet", _LPIPS.format("AlexNet"), "", False, 4),
    "lpips_alex_scaled": Key("LPIPS AlexNet, scaled", _SCALED, "", False, 4),
    "clip_image_sim": Key("CLIP", "cosine of ViT-L/14 picture embeddings", digits=4),
    "egovlp_image_sim": Key(
        "EgoVLP", "cosine of embeddings of the frame as a still video", digits=4
    ),
    "egovlp_plus_image_sim": Key(
        "EgoVLP+", "the same, videos that begin with the source frame", digits=4
    ),
    "blip_base_egovlp_sim": Key("BLIP-B", _BLIP.format("base"), digits=4),
    "blip_large_egovlp_sim": Key("BLIP-L", _BLIP.format("large"), digits=4),
}
GROUPS = {
    "lpips": ("lpips_squeeze", "lpips_vgg", "lpips_alex"),
    "blip": ("blip_base", "blip_large"),
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

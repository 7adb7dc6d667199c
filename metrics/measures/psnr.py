"""PSNR as released (mean of the frames' dB values), and in the region that the action changed.

torchmetrics' `PeakSignalNoiseRatio` over a whole folder pools the errors first, which is another
number; it stands beside as `psnr_pooled`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from egogen.frames import read_rgb
from egogen.jobs import track
from metrics.frame_pairs import Pair
from metrics.images import read_ahead, read_pair
from metrics.measures.changed_region import changed_region_scores
from metrics.registry import Measured, Settings, finite_mean


def squared_error(pair: Pair) -> float:
    """Mean over pixels and channels of the squared difference, pictures in [0, 1]."""
    generated, target = read_pair(pair)
    return float((generated.double() - target.double()).square().mean())


def decibel(error: float) -> float:
    return math.inf if error == 0 else -10 * math.log10(error)


def measure(pairs: Sequence[Pair], settings: Settings) -> Measured:
    """`psnr` (released key), `psnr_pooled`; frames equal to their truth have no finite value.

    Where such frames occur, `psnr` is the mean of the others and `psnr_identical` counts them,
    since neither JSON nor a table can hold the infinite mean of the released script.
    """
    errors = list(
        track(read_ahead(squared_error, pairs, settings.workers), len(pairs), "psnr", "frames")
    )
    values = [decibel(error) for error in errors]
    overall = {"psnr": finite_mean(values)}
    pooled = decibel(math.fsum(errors) / len(errors))
    overall["psnr_pooled"] = pooled if math.isfinite(pooled) else None
    if identical := sum(map(math.isinf, values)):
        overall["psnr_identical"] = identical
    return Measured(overall, {"psnr": values})


def _changed(pair: Pair) -> tuple[float, float] | None:
    scores = changed_region_scores(*map(read_rgb, (pair.source, pair.generated, pair.target)))
    return scores and (scores.generated, scores.gain)


def measure_changed(pairs: Sequence[Pair], settings: Settings) -> Measured:
    """`psnr_changed`, `psnr_changed_gain`: where source and target differ, and against copying.

    Frames in which nothing changes have no value and count in neither mean.
    """
    read = read_ahead(_changed, pairs, settings.workers)
    scores = list(track(read, len(pairs), "changed region", "frames"))
    columns = {
        name: [math.nan if score is None else score[place] for score in scores]
        for place, name in enumerate(("psnr_changed", "psnr_changed_gain"))
    }
    overall = {name: finite_mean(values) for name, values in columns.items()}
    return Measured(overall, columns)

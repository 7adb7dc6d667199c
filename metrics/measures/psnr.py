"""PSNR of the frame, and PSNR in the region that the action changed.

`psnr` is the mean of the frames' dB values, as in the released code. torchmetrics'
`PeakSignalNoiseRatio` over all frames pools the errors first, which is another number; it stands
beside as `psnr_pooled`.

Most of a frame is the same before and after an action, so its PSNR mostly shows how well the
background was copied. `psnr_changed` looks only at the region that changes. Copying the source
frame is the bar to beat there; `psnr_changed_gain` is the difference to it.

Elsewhere `psnr_kept` compares with the source, so that a repainted background is seen. Copying has
the best value; a film keeps less (noise, shadows, JPEG), so the ground truth's own value is the
bar, and `psnr_kept_gain`, the difference to it, is below zero where more was repainted.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from egogen.frames import read_rgb
from metrics.frame_pairs import Pair
from metrics.images import read_ahead, read_pair, read_source
from metrics.registry import Measured, Settings, finite_mean

THRESHOLD = 16  # grey levels of 255; JPEG noise of an unchanged place stays below
SMOOTH_RADIUS = 1  # pixels of box blur before the threshold
GROW = 5  # pixels, side of the window that the region is grown by
BEST_DB = 100.0  # stands for equal regions, whose PSNR is infinite


def squared_error(pair: Pair) -> float:
    """Mean over pixels and channels of the squared difference, images in [0, 1]."""
    generated, target = read_pair(pair)
    return float((generated.double() - target.double()).square().mean())


def decibel(error: float) -> float:
    return math.inf if error == 0 else -10 * math.log10(error)


def measure(pairs: Sequence[Pair], settings: Settings) -> Measured:
    """`psnr` and `psnr_pooled`, dB.

    A frame equal to its ground truth has infinite PSNR, which neither JSON nor a table can hold.
    Where such frames occur, `psnr` is the mean of the others and `psnr_identical` counts them.
    """
    errors = list(read_ahead(squared_error, pairs, settings, "psnr"))
    values = [decibel(error) for error in errors]
    pooled = decibel(math.fsum(errors) / len(errors))
    overall: dict[str, float | int | None] = {
        "psnr": finite_mean(values),
        "psnr_pooled": pooled if math.isfinite(pooled) else None,
    }
    if identical := sum(map(math.isinf, values)):
        overall["psnr_identical"] = identical
    return Measured(overall, {"psnr": values})


class RegionScores(NamedTuple):
    """PSNR in a region, dB, of the generated frame and of what it has to beat."""

    generated: float
    copied: float  # the source it started from; of what is kept, the ground truth

    @property
    def gain(self) -> float:
        return self.generated - self.copied


def _matched(image: Image.Image, target: Image.Image) -> Image.Image:
    return image.convert("RGB").resize(target.size, Image.Resampling.BICUBIC)


def changed_mask(source: Image.Image, target: Image.Image) -> np.ndarray:
    """Pixels of `target`, (H, W) bool, that differ from `source` in any channel, grown a bit.

    `source` is brought to the target's size first.
    """
    difference = ImageChops.difference(_matched(source, target), target.convert("RGB"))
    largest = np.asarray(difference.filter(ImageFilter.BoxBlur(SMOOTH_RADIUS))).max(axis=2)
    mask = Image.fromarray(np.where(largest > THRESHOLD, 255, 0).astype(np.uint8))
    return np.asarray(mask.filter(ImageFilter.MaxFilter(GROW))) > 0


def region_psnr(image: Image.Image, target: Image.Image, mask: np.ndarray) -> float:
    """PSNR in dB, at most BEST_DB, over the pixels of `mask` (not empty), all channels."""
    first, second = (np.asarray(x, np.float64)[mask] for x in (_matched(image, target), target))
    error = float(np.mean((first - second) ** 2)) / 255**2
    return min(BEST_DB, decibel(error))


def changed_region_scores(
    source: Image.Image, generated: Image.Image, target: Image.Image, kept: bool = False
) -> RegionScores | None:
    """Compare both with the target where it differs from the source; None where it never does.

    `kept`: compare frame and target with the source where those two agree. All are brought to the
    target's size.
    """
    target, source = target.convert("RGB"), _matched(source, target)
    mask = changed_mask(source, target) ^ kept
    if not mask.any():
        return None
    wanted, bar = (source, target) if kept else (target, source)
    return RegionScores(region_psnr(generated, wanted, mask), region_psnr(bar, wanted, mask))


def _measure_region(pairs: Sequence[Pair], settings: Settings, key: str, kept: bool) -> Measured:
    """`key` and `key_gain`, dB; frames without such a region are left out."""

    def scores_of(pair: Pair) -> RegionScores | None:
        images = read_source(pair), read_rgb(pair.generated), read_rgb(pair.target)
        return changed_region_scores(*images, kept)

    scores = list(read_ahead(scores_of, pairs, settings, key))
    columns = {
        key: [math.nan if score is None else score.generated for score in scores],
        f"{key}_gain": [math.nan if score is None else score.gain for score in scores],
    }
    return Measured({name: finite_mean(values) for name, values in columns.items()}, columns)


measure_changed = partial(_measure_region, key="psnr_changed", kept=False)
measure_kept = partial(_measure_region, key="psnr_kept", kept=True)

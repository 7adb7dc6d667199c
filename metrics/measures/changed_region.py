"""Where an action changed the picture, and how well a generated frame got that part.

Most of a frame is the same before and after an action, so its PSNR says mostly how well the
background was copied. Inside the region that changes, copying the source is the bar to beat.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

THRESHOLD = 16  # grey levels of 255; JPEG noise of an unchanged place stays below
SMOOTH_RADIUS = 1  # pixels of box blur before the threshold
GROW = 5  # side of the window that the region is grown by
BEST_DB = 100.0  # stands for equal regions, whose PSNR is infinite


class RegionScores(NamedTuple):
    """PSNR in the changed region, dB, of the generated frame and of the source it started from."""

    generated: float
    copied: float

    @property
    def gain(self) -> float:
        return self.generated - self.copied


def _matched(picture: Image.Image, target: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize(target.size, Image.Resampling.BICUBIC)


def changed_mask(source: Image.Image, target: Image.Image) -> np.ndarray:
    """Pixels of `target` (H, W) bool that differ from `source` in any channel, grown a bit.

    `source` is brought to the target's size first.
    """
    difference = ImageChops.difference(_matched(source, target), target.convert("RGB"))
    largest = np.asarray(difference.filter(ImageFilter.BoxBlur(SMOOTH_RADIUS))).max(axis=2)
    mask = Image.fromarray(np.where(largest > THRESHOLD, 255, 0).astype(np.uint8))
    return np.asarray(mask.filter(ImageFilter.MaxFilter(GROW))) > 0


def region_psnr(picture: Image.Image, target: Image.Image, mask: np.ndarray) -> float:
    """PSNR in dB, at most BEST_DB, over the pixels of `mask` (not empty), all channels."""
    first, second = (
        np.asarray(image, np.float64)[mask] for image in (_matched(picture, target), target)
    )
    error = float(np.mean((first - second) ** 2)) / 255**2
    return BEST_DB if error == 0 else min(BEST_DB, -10 * math.log10(error))


def changed_region_scores(
    source: Image.Image, generated: Image.Image, target: Image.Image
) -> RegionScores | None:
    """Compare both with the target where it differs from the source; None where it never does.

    `source` and `generated` are brought to the target's size.
    """
    target = target.convert("RGB")
    mask = changed_mask(source, target)
    if not mask.any():
        return None
    return RegionScores(region_psnr(generated, target, mask), region_psnr(source, target, mask))

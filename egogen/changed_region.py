"""Where an action changed the picture, and how well a generated frame got that part.

Most of a frame is the same before and after an action, so its PSNR says mostly how well the
background was copied. Inside the region that changes, copying the source is the bar to beat.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops, ImageFilter

THRESHOLD = 16  # grey levels of 255; JPEG noise of an unchanged place stays below
SMOOTH_RADIUS = 1  # pixels of box blur before the threshold
GROW = 5  # side of the window that the region is grown by


def changed_mask(source: Image.Image, target: Image.Image) -> np.ndarray:
    """Pixels (H, W) bool where two RGB pictures of one size differ in any channel, grown a bit."""
    difference = ImageChops.difference(source, target).filter(ImageFilter.BoxBlur(SMOOTH_RADIUS))
    largest = np.asarray(difference).max(axis=2)
    mask = Image.fromarray(np.where(largest > THRESHOLD, 255, 0).astype(np.uint8))
    return np.asarray(mask.filter(ImageFilter.MaxFilter(GROW))) > 0


def region_psnr(picture: Image.Image, target: Image.Image, mask: np.ndarray) -> float:
    """PSNR in dB over the pixels of `mask`, all channels; infinite when they are equal."""
    first, second = (np.asarray(image, np.float64)[mask] / 255 for image in (picture, target))
    error = float(np.mean((first - second) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def changed_region_scores(
    source: Image.Image, generated: Image.Image, target: Image.Image
) -> tuple[float, float] | None:
    """(PSNR of the generated frame, its gain over copying the source), dB, in the changed region.

    All three are RGB pictures of one size. None when nothing changed between source and target.
    """
    mask = changed_mask(source, target)
    if not mask.any():
        return None
    value = region_psnr(generated, target, mask)
    return value, value - region_psnr(source, target, mask)

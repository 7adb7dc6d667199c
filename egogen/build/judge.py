"""What is wrong with a pair as an example of an action: nothing happens, too much, or blur."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

REASONS = SIMILAR, BLURRED, DIFFERENT = "similar", "blurred", "different"


@dataclass(frozen=True)
class Limits:
    """Below these, and above `change`, a pair is reported."""

    difference: float = 1.5
    sharpness: float = 20.0
    change: float = 0.6

    def broken_by(self, figures: dict[str, float]) -> list[str]:
        """What is wrong with a pair of these figures (of `measure`)."""
        wrong = [SIMILAR] if figures["difference"] < self.difference else []
        wrong += [BLURRED] if figures["sharpness"] < self.sharpness else []
        return wrong + ([DIFFERENT] if figures["change"] > self.change else [])


def grey(image: Image.Image, width: int) -> np.ndarray:
    """Greyscale in 0..255, float32, `width` wide at the image's own aspect."""
    height = max(round(image.height * width / image.width), 3)
    small = image.convert("L").resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def difference(source: Image.Image, target: Image.Image) -> float:
    """Mean absolute difference of the two in grey levels, seen from afar (64 wide).

    The median change is taken out: a lamp that flickers is no action.
    """
    one, other = grey(source, 64), grey(target.resize(source.size), 64)
    change = one - other
    return float(np.abs(change - np.median(change)).mean())


def change(source: Image.Image, target: Image.Image) -> float:
    """How little of what is seen from afar (32 wide) stays in its place: 0 all, about 1 nothing.

    1 less the contrast and structure of SSIM (Wang et al. 2004) in one window over the frame.
    """
    one, other = grey(source, 32), grey(target.resize(source.size), 32)
    common = ((one - one.mean()) * (other - other.mean())).mean()
    still = 58.5  # (0.03 x 255)^2, as there
    return float(1 - (2 * common + still) / (one.var() + other.var() + still))


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian at 256 wide, small when blurred (Pech-Pacheco et al. 2000)."""
    p = grey(image, 256)
    laplacian = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * p[1:-1, 1:-1]
    return float(laplacian.var())


def measure(source: Image.Image, target: Image.Image) -> dict[str, float]:
    """{difference, sharpness (of the less sharp frame), change}."""
    sharp = min(sharpness(source), sharpness(target))
    figures = {"difference": difference(source, target), "sharpness": sharp}
    return {n: round(v, 3) for n, v in {**figures, "change": change(source, target)}.items()}

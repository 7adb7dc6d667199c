"""Reading an image of the mini world: which object is where, what state it is in, who holds it.

Only the image is used. Every kind has a hue (or lightness) of its own, so pixels are classed by
hue and saturation, which a change of light hardly moves; a thing is where its class is densest.
Works at any size: the image is squeezed to GRID x GRID first, so a frame that was generated at
64 x 64 is read in the same way as a full one. Positions are relative, x right and y down in [0, 1].
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageFilter

from mini.world.kinds import HOLD, SIDES

Box = tuple[float, float, float, float]  # left, top, right, bottom; relative
GRID = 128
BLUR = 0.8  # px of the grid: takes noise away before pixels are classed

THRESHOLDS = yaml.safe_load(Path(__file__).with_name("thresholds.yaml").read_text("utf-8"))
HUES = THRESHOLDS["hues"]
LEAST = 0.0024  # share of the image that a thing must cover to be seen
WINDOW = (0.2, 0.24)  # a thing's pixels lie within such a box
SKIN_BLUR = 1.3  # px more, skin differs from wood by little
WALL = 0.2  # things out of focus above this height are neither plates nor pans


@dataclass(frozen=True)
class Seen:
    """An object or a hand's skin: centre, width, height (relative), share of the image; of objects
    also state and holder.
    """

    x: float
    y: float
    width: float
    height: float
    area: float
    kind: str = ""
    state: str = ""  # open, closed, cut, washed, filled, or nothing special
    held_by: str | None = None

    @property
    def box(self) -> Box:
        return self.around(self.width / 2, self.height / 2, self.height / 2)

    def around(self, across: float, above: float, below: float) -> Box:
        return self.x - across, self.y - above, self.x + across, self.y + below


@dataclass(frozen=True)
class Reading:
    """What an image shows. `masks`: class -> (GRID, GRID) bool; classes are the kinds, skin,
    white, flesh and dark."""

    objects: dict[str, Seen]
    hands: dict[str, Seen]
    masks: dict[str, np.ndarray] = field(repr=False, compare=False)

    def share(self, name: str, box: Box) -> float:
        """Share of the box that class `name` covers."""
        left, top, right, bottom = (min(max(round(end * GRID), 0), GRID) for end in box)
        part = self.masks[name][top:bottom, left:right]
        return float(part.mean()) if part.size else 0.0


def classes(image: Image.Image) -> dict[str, np.ndarray]:
    """Class -> (GRID, GRID) bool. A pixel may be of several classes or of none."""
    small = image.convert("RGB").resize((GRID, GRID), Image.Resampling.BICUBIC)
    small = small.filter(ImageFilter.GaussianBlur(BLUR))
    rgb = np.asarray(small, np.float32) / 255
    value, low = rgb.max(-1), rgb.min(-1)
    chroma = value - low
    saturation = chroma / np.maximum(value, 0.02)
    hue = _hue(rgb, value, np.maximum(chroma, 1e-4))
    masks = {}
    for kind, (first, last, least, bright) in HUES.items():
        between = ((hue - first) % 360) <= (last - first)
        masks[kind] = between & (saturation > least) & (value > bright)
    below = (np.arange(GRID) >= WALL * GRID)[:, None]
    masks["white"] = (low > 0.72) & (saturation < 0.2)
    masks["plate"] = masks["white"] & (saturation < 0.15) & below
    pale = (saturation > 0.1) & (saturation < 0.5) & (value > 0.7)
    masks["flesh"] = (hue > 32) & (hue < 64) & pale
    masks["dark"] = value < 0.27
    masks["pan"] = (value < 0.21) & below
    masks["skin"] = _skin(small)
    return masks


def _skin(small: Image.Image) -> np.ndarray:
    """Pixels redder than the table, yet less so than fruit. Ratios of channels forget the light."""
    small = small.filter(ImageFilter.GaussianBlur(SKIN_BLUR))
    rgb = np.maximum(np.asarray(small, np.float32) / 255, 0.01)
    first, second = np.log(rgb[..., 0] / rgb[..., 1]), np.log(rgb[..., 1] / rgb[..., 2])
    table = float(np.median(first[round(WALL * GRID) :]))
    skin = (first > max(table + 0.085, 0.13)) & (first < 0.6) & (second > 0.03) & (second < 0.6)
    # Fruit fades into the table through colours of skin, in thin rings.
    return skin & (_sums(skin, 5, 5) >= 15)


def _hue(rgb: np.ndarray, value: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Hue in degrees, (H, W)."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    hue = np.where(
        value == red,
        (green - blue) / chroma,
        np.where(value == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma),
    )
    return hue * 60 % 360


def _sums(mask: np.ndarray, wide: int, high: int) -> np.ndarray:
    """Number of set pixels in the box of odd size (wide, high) around every pixel."""
    from scipy.ndimage import uniform_filter  # slow to import

    shares = uniform_filter(mask.astype(float), (high, wide), mode="constant")
    return np.rint(shares * (wide * high))


def locate(mask: np.ndarray, window: tuple[float, float] = WINDOW) -> Seen | None:
    """The thing that a class shows, or None when too little of it is there."""
    if mask.mean() < LEAST:
        return None
    # Begins with the box of the window's size that holds most of the mask.
    boxes = _sums(mask, round(window[0] * GRID) | 1, round(window[1] * GRID) | 1)
    rows, columns = np.nonzero(boxes == boxes.max())  # the middle of all equally good places
    column, row = round(columns.mean()), round(rows.mean())
    for _ in range(3):
        near = np.zeros_like(mask)
        near[_reach(row, window[1]), _reach(column, window[0])] = True
        rows, columns = np.nonzero(mask & near)
        if not len(rows):
            return None
        column, row = round(columns.mean()), round(rows.mean())
    area = len(rows) / GRID**2
    if area < LEAST:
        return None
    left, right = np.percentile(columns, (3, 97))
    top, bottom = np.percentile(rows, (3, 97))
    places = (columns.mean() + 0.5, rows.mean() + 0.5, right - left + 1, bottom - top + 1)
    x, y, wide, high = (float(place) / GRID for place in places)
    return Seen(x, y, wide, high, area)


def _reach(centre: int, side: float) -> slice:
    """A little more than `side` (relative) around a row or column."""
    far = side * 0.62 * GRID
    return slice(max(round(centre - far), 0), round(centre + far) + 1)


def read_image(image: Image.Image) -> Reading:
    """Read any image of the mini world, of any size, sharp or blurred."""
    masks = classes(image)
    hands = {}
    for side in SIDES:
        half = masks["skin"].copy()
        half[:, GRID // 2 :] &= side == "right"
        half[:, : GRID // 2] &= side == "left"
        if seen := locate(half, (0.16, 0.26)):
            hands[side] = seen
    kinds = (*HUES, "plate", "pan")
    found = {kind: seen for kind in kinds if (seen := locate(masks[kind]))}
    reading = Reading(found, hands, masks)
    objects = {
        kind: replace(
            seen, kind=kind, state=_state(reading, kind, seen), held_by=holder(reading, seen)
        )
        for kind, seen in found.items()
    }
    return Reading(objects, hands, masks)


def holder(reading: Reading, seen: Seen) -> str | None:
    """The hand that holds a thing up in front of the body, or None."""
    for side in SIDES:
        hand = reading.hands.get(side)
        near = hand and abs(hand.x - seen.x) < 0.1 and -0.1 < hand.y - seen.y < 0.2
        if near and abs(seen.x - HOLD[side][0]) < 0.12 and 0.5 < seen.y < 0.76:
            return side
    return None


def _state(reading: Reading, kind: str, seen: Seen) -> str:
    left, top, right, bottom = seen.box
    if kind == "jar":
        mouth = (seen.x - 0.05, top - 0.03, seen.x + 0.04, top + 0.07)
        return "open" if reading.share("dark", mouth) > 0.08 else "closed"
    if kind == "lunch box":
        inner = (left, top + 0.3 * seen.height, right, bottom)
        return "open" if reading.share("white", inner) > 0.03 else "closed"
    if kind in ("apple", "carrot"):
        return "cut" if seen.width > 0.2 and reading.share("white", seen.box) > 0.06 else ""
    if kind in ("bowl", "mug", "pan"):
        inner = (left, top - 0.04, right, bottom)
        if reading.share("white", inner) > 0.1:
            sponge = reading.objects.get("sponge")
            close = sponge and abs(sponge.x - seen.x) < 0.15 and abs(sponge.y - seen.y) < 0.15
            return "washed" if close else "filled"
    return ""

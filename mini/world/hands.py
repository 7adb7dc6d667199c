"""Forearms in sleeves, and hands seen from behind, reaching from the lower edge."""

import math

import numpy as np

from mini.world import objects
from mini.world.paint import Layer, Pen, tube

ARM, FINGERS = objects.DRAWINGS["arm"], objects.DRAWINGS["fingers"]


def elbow(size: tuple[int, int], side: str, x: float) -> tuple[float, float]:
    """Where the forearm leaves the image (px), for a hand at `x` px."""
    width, height = size
    home = 0.1 if side == "left" else 0.9
    rest = 0.165 if side == "left" else 0.835
    return width * (home + 0.22 * (x / width - rest)), height * 1.2


def arm_pen(
    size: tuple[int, int], side: str, x: float, y: float, unit: float, lit: float
) -> tuple[Pen, float]:
    """A pen at the palm (x, y) px on a layer of the whole arm, and the forearm's length (units).

    The pen's -y axis runs along the forearm; +x is the thumb's side.
    """
    ex, ey = elbow(size, side, x)
    reach = 0.95 * unit
    layer = Layer(min(x, ex) - reach, y - reach, max(x, ex) + reach, size[1], size)
    angle, flip = math.atan2(x - ex, ey - y), 1 if side == "left" else -1
    return Pen(layer, x, y, unit, angle, flip, lit), math.hypot(x - ex, y - ey) / unit


def draw_arm(pen: Pen, length: float, skin: np.ndarray, sleeve: np.ndarray) -> None:
    """Sleeve and wrist, up to the palm at the origin; `length` (units) leads out of the frame."""
    objects.draw(pen, ARM, skin, "wrist")
    shade = tube(pen.lit, vertical=False, low=0.5)
    pen.capsule((0, max(length, 1.2)), (0, 0.72), 0.4, 0.3, sleeve, shade)
    objects.draw(pen, ARM, sleeve, "sleeve")


def draw_hand(pen: Pen, skin: np.ndarray, curl: float) -> None:
    """Back of the hand, fingers and thumb; `curl` 0 stretched, 1 closed around something."""
    pen.capsule((0, 0.16), (-0.01, -0.04), 0.19, 0.235, skin, tube(pen.lit, low=0.75))
    shade, nail = tube(pen.lit, vertical=False, low=0.62), np.minimum(skin * 1.1 + 0.04, 1.0)
    for root_x, root_y, turn, length in FINGERS:
        bone = length * (0.55 - 0.1 * curl)
        middle = (root_x + bone * math.sin(turn), root_y - bone * math.cos(turn))
        bend = turn + curl * (0.9 if root_x < 0 else -0.5) * 0.4
        rest = length * (0.5 - 0.12 * curl)
        tip = (middle[0] + rest * math.sin(bend), middle[1] - rest * math.cos(bend))
        pen.capsule((root_x, root_y), middle, 0.078, 0.068, skin, shade)
        pen.capsule(middle, tip, 0.068, 0.055, skin * 1.03, shade)
        pen.ellipse(*tip, 0.036, 0.04, nail, alpha=0.8)
        pen.glow(root_x, root_y, 0.07, 0.06, np.minimum(skin * 1.15, 1.0), alpha=0.6)
    joint = (0.3, -0.1 - 0.1 * curl)  # of the thumb, which closed lies across what is held
    tip = (0.36 - 0.2 * curl, -0.3 - 0.08 * curl)
    pen.capsule((0.13, 0.1), joint, 0.095, 0.078, skin, shade)
    pen.capsule(joint, tip, 0.075, 0.06, skin * 1.03, shade)
    pen.ellipse(*tip, 0.035, 0.042, nail, alpha=0.8)

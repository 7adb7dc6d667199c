"""How each kind of object looks. Every function draws with a pen whose origin is the base point.

`colour` is the albedo (3,) in [0, 1]; `condition` the thing's (closed, open, cut, washed, filled).
Containers are drawn in two goes, so that what lies in them stands between their back and front.
"""

import math

import numpy as np

from mini.world.paint import Pen, ball, slope, tube

WHITE = np.array([1.0, 1.0, 1.0], np.float32)
DARK = np.array([0.09, 0.08, 0.08], np.float32)
FLESH = {
    "apple": np.array([0.98, 0.95, 0.78], np.float32),
    "carrot": np.array([1.0, 0.86, 0.62], np.float32),
}
MILK = np.array([0.98, 0.97, 0.94], np.float32)


def shadow(pen: Pen, width: float, depth: float = 0.26) -> None:
    """Soft shadow on the table, away from the light, and a tight dark one at the contact."""
    reach = -0.22 * pen.lit
    pen.glow(reach, 0.0, width * 0.66, depth, DARK, alpha=0.42)
    pen.glow(reach * 0.4, 0.0, width * 0.54, depth * 0.6, DARK, alpha=0.5)


def apple(pen: Pen, colour: np.ndarray, condition: str) -> None:
    if condition == "cut":
        for side in (-1, 1):
            x = side * 0.46
            pen.ellipse(x + side * 0.06, -0.30, 0.32, 0.34, colour, ball(pen.lit))
            pen.ellipse(x - side * 0.07, -0.28, 0.2, 0.26, FLESH["apple"], slope(0, -0.06))
            pen.ellipse(x - side * 0.07, -0.27, 0.045, 0.09, colour * 0.6, alpha=0.7)
        return
    pen.ellipse(0, -0.37, 0.43, 0.385, colour, ball(pen.lit))
    pen.glow(0.02, -0.68, 0.17, 0.07, colour * 0.35, alpha=0.9)
    pen.capsule((0.0, -0.66), (0.06, -0.86), 0.03, 0.04, (0.3, 0.2, 0.12))
    pen.glow(0.17 * pen.lit, -0.52, 0.13, 0.1, WHITE, alpha=0.75)


def carrot(pen: Pen, colour: np.ndarray, condition: str) -> None:
    shade = tube(pen.lit, vertical=False, low=0.6)
    if condition == "cut":
        pen.capsule((-0.72, -0.22), (-0.46, -0.22), 0.25, 0.25, colour, shade)
        pen.ellipse(-0.37, -0.22, 0.16, 0.25, FLESH["carrot"])
        pen.ellipse(-0.37, -0.22, 0.06, 0.1, colour, alpha=0.55)
        pen.capsule((0.44, -0.2), (0.82, -0.17), 0.22, 0.09, colour, shade)
        pen.ellipse(0.4, -0.2, 0.13, 0.215, FLESH["carrot"])
        pen.ellipse(0.4, -0.2, 0.05, 0.08, colour, alpha=0.55)
        return
    for dy in (-0.12, 0.0, 0.12):
        pen.capsule((-0.45, -0.24), (-0.66, -0.24 + dy * 1.3), 0.05, 0.035, (0.42, 0.47, 0.28))
    pen.capsule((-0.36, -0.24), (0.5, -0.16), 0.24, 0.075, colour, shade)
    for x, size in ((-0.3, 0.12), (-0.12, 0.1), (0.08, 0.09), (0.25, 0.06)):
        pen.capsule((x, -0.3), (x + 0.02, -0.3 + size), 0.012, 0.012, colour * 0.62, alpha=0.7)
    pen.glow(-0.2, -0.36, 0.3, 0.06, WHITE, alpha=0.5, turn=0.1)


def jar(pen: Pen, colour: np.ndarray, condition: str) -> None:
    pen.box(0, -0.34, 0.38, 0.34, colour, tube(pen.lit), round_by=0.12)
    pen.ellipse(0, -0.64, 0.33, 0.11, colour, slope(0, -0.1, 0.95))
    pen.glow(0.18 * pen.lit - 0.05, -0.34, 0.06, 0.27, WHITE, alpha=0.55)
    lid = colour * np.array([0.80, 0.70, 0.5], np.float32)
    if condition == "open":
        pen.ellipse(0, -0.68, 0.33, 0.15, colour, slope(0.1 * pen.lit, 0, 0.85))
        pen.ellipse(0, -0.68, 0.285, 0.12, DARK, slope(0, 0.35))
        pen.ellipse(0.5, -0.04, 0.29, 0.13, lid * 0.7)
        pen.ellipse(0.5, -0.08, 0.29, 0.13, lid, slope(0.1 * pen.lit, -0.12, 1.12))
    else:
        pen.box(0, -0.76, 0.37, 0.1, lid, tube(pen.lit), round_by=0.05)
        pen.ellipse(0, -0.85, 0.36, 0.085, lid, slope(0.12 * pen.lit, -0.1, 1.15))


def bottle(pen: Pen, colour: np.ndarray, condition: str) -> None:
    shade = tube(pen.lit, low=0.5)
    pen.box(0, -0.43, 0.25, 0.43, colour, shade, round_by=0.1)
    pen.poly(((-0.25, -0.78), (0.25, -0.78), (0.11, -1.02), (-0.11, -1.02)), colour, shade)
    pen.box(0, -1.12, 0.1, 0.18, colour, shade, round_by=0.03)
    pen.box(0, -1.27, 0.12, 0.045, colour * 0.7, shade, round_by=0.03)
    pen.box(0, -0.42, 0.25, 0.15, colour * 0.45 + 0.5 * np.array([0.75, 0.95, 0.75]), shade)
    pen.glow(0.1 * (1 if pen.lit >= 0 else -1), -0.55, 0.045, 0.3, WHITE, alpha=0.6)


def bowl_back(pen: Pen, colour: np.ndarray, condition: str) -> None:
    pen.ellipse(0, -0.46, 0.58, 0.2, colour, slope(0.1 * pen.lit, 0, 1.05))
    pen.ellipse(0, -0.45, 0.525, 0.165, colour, slope(-0.14 * pen.lit, 0.16, 0.62))
    if condition == "filled":
        pen.ellipse(0, -0.42, 0.47, 0.13, MILK, slope(0.03, 0.04))


def bowl_front(pen: Pen, colour: np.ndarray, condition: str) -> None:
    pen.ellipse(0, -0.44, 0.575, 0.43, colour, tube(pen.lit), half=1)
    pen.glow(0.25 * pen.lit, -0.27, 0.16, 0.1, WHITE, alpha=0.4)
    pen.capsule((-0.42, -0.335), (0.42, -0.335), 0.02, 0.02, colour * 1.1, alpha=0.5)


def mug(pen: Pen, colour: np.ndarray, condition: str) -> None:
    for radius, tone in ((0.19, 0.8), (0.11, 0.0)):
        paint = colour * tone if tone else np.array([0.35, 0.34, 0.33], np.float32)
        pen.ellipse(0.33, -0.36, radius, radius * 1.15, paint, alpha=1.0 if tone else 0.9)
    pen.box(0, -0.34, 0.34, 0.34, colour, tube(pen.lit), round_by=0.1)
    pen.ellipse(0, -0.66, 0.34, 0.12, colour, slope(0.1 * pen.lit, 0, 1.15))
    pen.ellipse(0, -0.655, 0.295, 0.095, colour * 0.4)
    if condition == "filled":
        pen.ellipse(0, -0.645, 0.29, 0.09, MILK)
    pen.glow(0.16 * pen.lit - 0.04, -0.32, 0.06, 0.22, WHITE, alpha=0.45)


def lunch_box(pen: Pen, colour: np.ndarray, condition: str) -> None:
    if condition == "open":
        pen.poly(((-0.47, -0.46), (0.47, -0.46), (0.42, -1.0), (-0.42, -1.0)), colour * 0.8)
        pen.poly(((-0.4, -0.5), (0.4, -0.5), (0.36, -0.93), (-0.36, -0.93)), colour * 1.12)
        pen.poly(((-0.5, -0.26), (0.5, -0.26), (0.46, -0.5), (-0.46, -0.5)), colour * 0.85)
        cream = np.array([0.97, 0.95, 0.86], np.float32)
        pen.poly(((-0.46, -0.28), (0.46, -0.28), (0.42, -0.475), (-0.42, -0.475)), cream)
        pen.glow(-0.2, -0.37, 0.16, 0.07, (0.8, 0.72, 0.55), alpha=0.7)
        pen.glow(0.2, -0.38, 0.16, 0.07, (0.85, 0.8, 0.66), alpha=0.7)
    else:
        pen.poly(((-0.52, -0.36), (0.52, -0.36), (0.46, -0.64), (-0.46, -0.64)), colour * 1.18)
        pen.poly(((-0.38, -0.42), (0.38, -0.42), (0.35, -0.58), (-0.35, -0.58)), colour * 1.08)
        pen.box(0, -0.32, 0.53, 0.06, colour, slope(0.1 * pen.lit, 0, 1.05), round_by=0.04)
    pen.box(0, -0.14, 0.5, 0.145, colour, slope(0.14 * pen.lit, -0.1, 0.82), round_by=0.06)
    pen.box(0, -0.25, 0.08, 0.05, colour * 0.55, round_by=0.02)


def sponge(pen: Pen, colour: np.ndarray, condition: str) -> None:
    pen.box(0, -0.15, 0.42, 0.16, colour, slope(0.12 * pen.lit, -0.08, 0.82), round_by=0.08)
    pen.poly(((-0.41, -0.25), (0.41, -0.25), (0.35, -0.46), (-0.35, -0.46)), colour, slope(0, 0.05))
    top = ((-0.25, -0.34), (0.0, -0.4), (0.2, -0.31), (-0.1, -0.29), (0.28, -0.41))
    front = ((-0.2, -0.14), (0.12, -0.12), (0.3, -0.17))
    for x, y in (*top, *front):
        pen.ellipse(x, y, 0.035, 0.024, colour * 0.72)


def plate_back(pen: Pen, colour: np.ndarray, condition: str) -> None:
    pen.ellipse(0, -0.14, 0.63, 0.26, colour * 0.66)
    pen.ellipse(0, -0.18, 0.63, 0.255, colour, slope(0.05 * pen.lit, -0.03, 0.98))
    pen.ellipse(0, -0.175, 0.43, 0.165, colour * 0.82)
    pen.ellipse(0, -0.165, 0.42, 0.155, colour, slope(-0.04 * pen.lit, 0.04, 0.95))


def pan_back(pen: Pen, colour: np.ndarray, condition: str) -> None:
    pen.capsule((0.0, -0.02), (0.0, 0.34), 0.075, 0.095, colour, tube(pen.lit))
    pen.ellipse(0, -0.2, 0.54, 0.27, colour * 0.8)
    pen.ellipse(0, -0.28, 0.54, 0.25, colour * 2.6, slope(0.3 * pen.lit, -0.2))
    pen.ellipse(0, -0.275, 0.49, 0.215, colour, slope(-0.25 * pen.lit, 0.3, 0.9))
    if condition == "filled":
        pen.ellipse(0, -0.26, 0.4, 0.165, MILK, slope(0.03, 0.04))


def knife(pen: Pen, colour: np.ndarray, condition: str) -> None:
    """Blade to the left, dark handle to the right."""
    blade = ((-0.78, -0.14), (-0.62, -0.27), (0.18, -0.27), (0.18, 0.03), (-0.55, 0.03))
    pen.poly(blade, colour, slope(0, -0.1, 1.0))
    pen.poly(((-0.78, -0.14), (-0.55, 0.03), (0.18, 0.03), (0.18, -0.05)), colour * 0.55 + 0.42)
    pen.box(0.44, -0.16, 0.28, 0.085, (0.2, 0.2, 0.21), tube(0.0, vertical=False), round_by=0.07)
    pen.capsule((-0.55, -0.22), (0.1, -0.22), 0.012, 0.012, WHITE, alpha=0.5)


BACK = {
    "apple": apple,
    "carrot": carrot,
    "jar": jar,
    "bottle": bottle,
    "bowl": bowl_back,
    "mug": mug,
    "lunch box": lunch_box,
    "sponge": sponge,
    "plate": plate_back,
    "pan": pan_back,
    "knife": knife,
}
FRONT = {"bowl": bowl_front}
SUDS = tuple(  # a sunflower of bubbles, x and y in [-1, 1]
    (math.sqrt(i / 16) * math.cos(2.4 * i), math.sqrt(i / 16) * math.sin(2.4 * i))
    for i in range(16)
)


def suds(pen: Pen, width: float, height: float) -> None:
    """White foam over the upper part of a thing of that size, in units."""
    for i, (x, y) in enumerate(SUDS):
        radius = 0.075 + 0.02 * (i * 7 % 3)
        x, y = (x * 0.36 + 0.02) * width, (y * 0.36 - 0.74) * height
        pen.ellipse(x, y, radius, radius * 0.9, (0.80, 0.86, 0.90), ball(pen.lit))
        pen.glow(x, y, radius * 1.1, radius, WHITE, alpha=0.95, power=0.6)


def stream(pen: Pen, start, end) -> None:
    """Milk that falls from `start` to `end`."""
    pen.capsule(start, end, 0.05, 0.075, MILK, tube(pen.lit, low=0.85))
    pen.glow(end[0], end[1], 0.2, 0.08, WHITE, alpha=0.6)

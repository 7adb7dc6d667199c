"""Drawing the objects with a pen whose origin is the base point; drawings.yaml says how they look.

Colours are albedos (3,) in [0, 1]. Containers are drawn in two goes, so that what lies in them
stands between their back and front.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from mini.world.paint import Pen, ball, slope, tube

DRAWINGS = yaml.safe_load(Path(__file__).with_name("drawings.yaml").read_text(encoding="utf-8"))
COLOURS = {name: np.array(rgb, np.float32) for name, rgb in DRAWINGS["colours"].items()}
WHITE, DARK, MILK = COLOURS["white"], COLOURS["dark"], COLOURS["milk"]
BACK, FRONT, GRIP = DRAWINGS["kinds"], DRAWINGS["fronts"], DRAWINGS["grip"]
# Functions of the side that light comes from, in [-1, 1], and the numbers of the drawing.
SHADES: dict[str, Callable] = {
    "ball": ball,
    "tube": lambda lit, low=0.55: tube(lit, low=low),
    "lying": lambda lit, low, share=1.0: tube(share * lit, vertical=False, low=low),
    "slope": lambda lit, dx, dy, base=1.0: slope(dx, dy, base),
    "lit": lambda lit, dx, dy, base=1.0: slope(dx * lit, dy, base),
}
SUDS = tuple(  # a sunflower of bubbles, x and y in [-1, 1]
    (math.sqrt(i / 16) * math.cos(2.4 * i), math.sqrt(i / 16) * math.sin(2.4 * i))
    for i in range(16)
)


def draw(pen: Pen, part: dict[str, list], colour: np.ndarray, condition: str) -> None:
    """A part of `BACK` or `FRONT` (`GRIP`, the arm) in the colour and condition of a thing."""
    own = part.get(condition, part.get("otherwise", []))
    for shape in [*part.get("first", []), *own, *part.get("last", [])]:
        _draw_shape(pen, colour, **shape)


def _draw_shape(
    pen: Pen, own: np.ndarray, lean=0.0, edge=0.0, colour="", times=(), plus=0.0, shade=(), **form
) -> None:
    """A shape of drawings.yaml, which says what its words are; `own` is the thing's colour."""
    paint = COLOURS[colour] if colour else own
    for factor in times:
        paint = paint * np.array(factor, np.float32)
    if shade:
        form["shade"] = SHADES[shade[0]](pen.lit, *shade[1:])
    name = next(iter(form))  # what is left are options of the pen's
    place = form.pop(name)
    if name in ("ellipse", "glow", "box"):
        place = [place[0] + lean * pen.lit + math.copysign(edge, pen.lit), *place[1:]]
    getattr(pen, name)(*([place] if name == "poly" else place), paint + np.array(plus), **form)


def shadow(pen: Pen, width: float, depth: float = 0.26) -> None:
    """Soft shadow on the table, away from the light, and a tight dark one at the contact."""
    reach = -0.22 * pen.lit
    pen.glow(reach, 0.0, width * 0.66, depth, DARK, alpha=0.42)
    pen.glow(reach * 0.4, 0.0, width * 0.54, depth * 0.6, DARK, alpha=0.5)


def suds(pen: Pen, width: float, height: float) -> None:
    """White foam over the upper part of a thing of that size, in units."""
    for i, (x, y) in enumerate(SUDS):
        radius = 0.075 + 0.02 * (i * 7 % 3)
        x, y = (x * 0.36 + 0.02) * width, (y * 0.36 - 0.74) * height
        pen.ellipse(x, y, radius, radius * 0.9, COLOURS["foam"], ball(pen.lit))
        pen.glow(x, y, radius * 1.1, radius, WHITE, alpha=0.95, power=0.6)


def stream(pen: Pen, start, end) -> None:
    """Milk that falls from `start` to `end`."""
    pen.capsule(start, end, 0.05, 0.075, MILK, tube(pen.lit, low=0.85))
    pen.glow(end[0], end[1], 0.2, 0.08, WHITE, alpha=0.6)

"""What exists in the mini world: kinds of objects, what can be done with them, their places.

Lengths of objects are in units of `Scene.unit` pixels (about an object's width), measured from the
point where the object touches the table; x grows to the right, y downwards. Positions in the
frame are relative: x in [0, 1] of the width, y in [0, 1] of the height.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

WORLD = yaml.safe_load(Path(__file__).with_name("world.yaml").read_text(encoding="utf-8"))
SIDES = ("left", "right")


@dataclass(frozen=True)
class Kind:
    """One kind of object; world.yaml says what the fields are."""

    name: str
    colour: str
    hsv: tuple[float, float, float]
    size: tuple[float, float]
    grasp: tuple[float, float]
    preposition: str = ""
    floor: tuple[float, float] = (0.0, 0.0)
    opens: bool = False
    verb: str = "put"
    targets: tuple[str, ...] = ()


KINDS = {name: Kind(name, **fields) for name, fields in WORLD["kinds"].items()}


@dataclass(frozen=True)
class Place:
    """A spot on the table: relative position of the base point, and how many units scale there."""

    x: float
    y: float
    scale: float
    side: str


PLACES = {name: Place(**fields) for name, fields in WORLD["places"].items()}
JITTER = (0.018, 0.014)  # relative, each way
REST = {"left": (0.165, 0.87), "right": (0.835, 0.87)}  # palm of an idle hand
HOLD = {"left": (0.205, 0.655), "right": (0.795, 0.655)}  # grasp point of a thing held up

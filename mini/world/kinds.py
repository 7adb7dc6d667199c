"""What exists in the mini world: kinds of objects, what can be done with them, their places.

Lengths of objects are in units of `Scene.unit` pixels (about an object's width), measured from the
point where the object touches the table; x grows to the right, y downwards. Positions in the
frame are relative: x in [0, 1] of the width, y in [0, 1] of the height.
"""

from dataclasses import dataclass

SIDES = ("left", "right")


@dataclass(frozen=True)
class Kind:
    """One kind of object. `hsv`: hue in degrees, saturation and value in [0, 1]."""

    name: str
    colour: str  # the word that descriptions use
    hsv: tuple[float, float, float]
    size: tuple[float, float]  # width and height of the resting object, in units
    grasp: tuple[float, float]  # from the base point to the point inside a holding hand
    preposition: str = ""  # how things are put there: "into", "onto", or not at all
    floor: tuple[float, float] = (0.0, 0.0)  # where the base of a thing put there comes to stand
    opens: bool = False
    goes_into: tuple[str, ...] = ()  # kinds that it can be put into or onto


CONTAINERS = ("bowl", "pan", "plate")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("apple", "red", (359, 0.86, 0.8), (0.86, 0.86), (0.0, -0.36), goes_into=CONTAINERS),
        Kind("carrot", "orange", (23, 0.94, 0.96), (1.15, 0.5), (0.0, -0.2), goes_into=CONTAINERS),
        Kind("jar", "yellow", (49, 0.86, 0.93), (0.78, 0.86), (0.0, -0.38), opens=True),
        Kind("bottle", "green", (142, 0.74, 0.52), (0.48, 1.3), (0.0, -0.4)),
        Kind("bowl", "turquoise", (181, 0.72, 0.78), (1.16, 0.6), (0.0, -0.12), "into", (0, -0.26)),
        Kind("mug", "blue", (219, 0.78, 0.74), (0.86, 0.76), (0.0, -0.3), goes_into=("plate",)),
        Kind("lunch box", "purple", (277, 0.58, 0.66), (1.06, 0.66), (0.0, -0.16), opens=True),
        Kind("sponge", "pink", (331, 0.5, 0.98), (0.86, 0.5), (0.0, -0.2)),
        Kind("plate", "white", (40, 0.03, 0.97), (1.26, 0.52), (0.0, 0.0), "onto", (0.0, -0.14)),
        Kind("pan", "black", (220, 0.08, 0.1), (1.06, 0.6), (0.0, 0.18), "into", (0.0, -0.16)),
        Kind("knife", "lime", (77, 0.8, 0.86), (1.3, 0.32), (0.42, -0.12)),
    )
}
# What a sponge washes, a bottle fills and a knife cuts.
WASHABLE = ("plate", "bowl", "pan", "mug")
POURABLE = ("mug", "bowl", "pan")
CUTTABLE = ("apple", "carrot")


@dataclass(frozen=True)
class Place:
    """A spot on the table: relative position of the base point, and how many units scale there."""

    x: float
    y: float
    scale: float
    side: str


FAR, NEAR = 0.44, 0.77
PLACES = {
    "far outer left": Place(0.135, FAR, 0.95, "left"),
    "far inner left": Place(0.375, FAR, 0.95, "left"),
    "far inner right": Place(0.625, FAR, 0.95, "right"),
    "far outer right": Place(0.865, FAR, 0.95, "right"),
    "near inner left": Place(0.425, NEAR, 1.05, "left"),
    "near inner right": Place(0.575, NEAR, 1.05, "right"),
}
JITTER = (0.018, 0.014)  # relative, each way
REST = {"left": (0.165, 0.87), "right": (0.835, 0.87)}  # palm of an idle hand
HOLD = {"left": (0.205, 0.655), "right": (0.795, 0.655)}  # grasp point of a thing held up

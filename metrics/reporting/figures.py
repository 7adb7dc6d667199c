"""How a report writes its figures: digits, units, names and intervals."""

import math
from collections.abc import Sequence

from metrics.registry import KEYS, Key

COUNTS = {
    "samples": "Frames measured",
    "problems": "Frames left out",
    "psnr_identical": "Frames equal to their truth",
}
DASH = "\N{EN DASH}"


def key_of(name: str) -> Key:
    """How the figure `name` is read; counts and unknown names have only a title."""
    return KEYS.get(name) or Key(COUNTS.get(name, name.replace("_", " ")), "", digits=4)


def is_signed(name: str) -> bool:
    """Whether zero is a bar to beat, so that the sign is shown."""
    return name.endswith("gain")


def number(name: str, value: float | None, unit: bool = True, signed: bool | None = None) -> str:
    """A value of the figure `name`, as `+3.21 dB`; counts as they are, a dash for no value."""
    key = key_of(name)
    if isinstance(value, int):
        return str(value)
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "equal" if value > 0 else DASH
    sign = "+" if (is_signed(name) if signed is None else signed) else ""
    text = f"{value:{sign}.{key.digits}f}".replace("-", "\N{MINUS SIGN}")
    return f"{text} {key.unit}".strip() if unit else text


def interval_text(name: str, interval: Sequence[float] | None) -> str:
    """`2.61 to 3.21`, without the unit; empty for none."""
    return " to ".join(number(name, float(end), unit=False) for end in interval or ())


def percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f} %"


def arrow(name: str) -> str:
    """The direction in which a figure is better; empty for counts."""
    return KEYS[name].arrow if name in KEYS else ""

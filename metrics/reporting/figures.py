"""How a report writes its figures: digits, units, names, intervals, and which ones come first."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from metrics.registry import KEYS, Key
from metrics.reporting.data import ReportData

CELLS = 8  # figures in the headline at most
HEADLINE = (
    "psnr_changed_gain",
    "fid",
    "psnr",
    "lpips_alex",
    "clip_image_sim",
    "egovlp_image_sim",
    "egovlp_plus_image_sim",
    "blip_large_egovlp_sim",
    "psnr_changed",
)
COUNTS = {
    "samples": "Frames measured",
    "problems": "Frames left out",
    "psnr_identical": "Frames equal to their truth",
}
DASH = "\N{EN DASH}"


class Cell(NamedTuple):
    """One figure of the headline; `interval` may be empty."""

    figure: str
    name: str
    interval: str
    meaning: str


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


def headline(data: ReportData) -> list[Cell]:
    """What matters most, first the action itself."""
    cells = []
    if data.score:
        others = data.score.get("other_action_rate")
        meaning = "read from the frame by the oracle"
        if others is not None:
            meaning += f"; a sibling's action in {percent(others)}"
        cells.append(Cell(percent(data.score.get("done_rate")), "Action done", "", meaning))
    if data.descriptions:
        right = data.descriptions.get("object_hand_target", data.descriptions.get("all"))
        count = data.descriptions.get("count")
        meaning = "object, hand and target" + (f", of {count}" if count else "")
        cells.append(Cell(percent(right), "Descriptions right", "", meaning))
    measured = [name for name in HEADLINE if name in data.overall]
    for name in measured[: CELLS - len(cells)]:
        interval = interval_text(name, data.intervals.get(name))
        figure = number(name, data.overall[name])
        cells.append(Cell(figure, key_of(name).title, interval, key_of(name).meaning))
    return cells

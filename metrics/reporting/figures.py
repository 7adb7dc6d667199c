"""How a report says its figures: digits, units, names, intervals, and which ones come first."""

from __future__ import annotations

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


def number(value: float | None, key: Key, signed: bool = False) -> str:
    """`+3.21 dB`; a dash for what has no value."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "equal" if value > 0 else DASH
    text = f"{value:{'+' if signed else ''}.{key.digits}f}".replace("-", "\N{MINUS SIGN}")
    return f"{text} {key.unit}".strip()


def is_signed(name: str) -> bool:
    """Whether zero is a bar to beat, so that the sign is shown."""
    return name.endswith("gain")


def interval_text(interval: Sequence[float] | None, key: Key, signed: bool = False) -> str:
    """`2.61 to 3.21`, without the unit; empty for none."""
    if interval is None:
        return ""
    bare = Key(key.title, key.meaning, "", key.higher_is_better, key.digits)
    return " to ".join(number(end, bare, signed) for end in interval)


def percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f} %"


def key_of(name: str) -> Key:
    return KEYS.get(name) or Key(COUNTS.get(name, name.replace("_", " ")), "", digits=4)


def arrow(name: str) -> str:
    """The direction in which a figure is better; empty for counts."""
    if name not in KEYS:
        return ""
    return "\N{UPWARDS ARROW}" if KEYS[name].higher_is_better else "\N{DOWNWARDS ARROW}"


def headline(data: ReportData) -> list[Cell]:
    """What matters most, first the action itself."""
    cells = []
    if data.score:
        others = data.score.get("other_action_rate")
        cells.append(
            Cell(
                percent(data.score.get("done_rate")),
                "Action done",
                "",
                "read from the frame by the oracle"
                + (f"; a sibling's action in {percent(others)}" if others is not None else ""),
            )
        )
    if data.swapped:
        cells.append(
            Cell(
                percent(data.swapped.get("done_rate")),
                "Action done, control",
                "",
                "same frames, another action's description and features",
            )
        )
    if data.descriptions:
        right = data.descriptions.get("object_hand_target", data.descriptions.get("all"))
        count = data.descriptions.get("count")
        cells.append(
            Cell(
                percent(right),
                "Descriptions right",
                "",
                "object, hand and target" + (f", of {count}" if count else ""),
            )
        )
    for name in HEADLINE:
        if name in data.overall and len(cells) < CELLS:
            key, value = key_of(name), data.overall[name]
            interval = interval_text(data.intervals.get(name), key, is_signed(name))
            cells.append(
                Cell(number(value, key, is_signed(name)), key.title, interval, key.meaning)
            )
    return cells

"""Two runs side by side: the table for a terminal, and drawings of frames and differences."""

from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from metrics.intervals import FLIPS, Comparison
from metrics.registry import KEYS, Key
from metrics.reporting.curves import ACCENT, INK, SECOND, Drawing, plain_axes
from metrics.reporting.runs import Versus

HEAD = ("figure", "A", "B", "B - A", "95 % interval", "p", "B better in", "frames", "better")
NOTE = (
    "Intervals: whole clips resampled. p: paired sign-flip test over clips (of FID: normal, from\n"
    "resampled clips), not corrected for the number of figures. In the share of frames in which B\n"
    "is better a tie counts half."
)
MANY = 1500  # points that an SVG holds one by one; more become an image


def p_text(p_value: float | None) -> str:
    if p_value is None:
        return "-"
    return f"<{1 / FLIPS:.4f}" if p_value < 1 / FLIPS else f"{p_value:.4f}"


def cells(found: Comparison, key: Key) -> tuple[str, ...]:
    """The columns of `HEAD` for one figure, in the figure's own digits."""
    digits = key.digits
    interval = " to ".join(f"{end:+.{digits}f}" for end in found.interval or ())
    return (
        f"{key.label} {key.arrow}",
        f"{found.first:.{digits}f}",
        f"{found.second:.{digits}f}",
        f"{found.difference:+.{digits}f}",
        interval or "-",
        p_text(found.p_value),
        "-" if found.win_rate is None else f"{100 * found.win_rate:.1f} %",
        str(found.frames),
        found.better(key) or "-",
    )


def text_table(versus: Versus) -> str:
    """The comparison: who is who, a line a figure, what was left out."""
    rows = [HEAD, *(cells(found, KEYS[found.key]) for found in versus.figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"A: {versus.first.name} ({versus.first.folder})",
        f"B: {versus.second.name} ({versus.second.folder})",
        f"{len(versus.frames)} frames of {versus.clips} clips in both",
        "",
    ]
    for title, *values in rows:
        padded = [title.ljust(widths[0]), *map(str.rjust, values, widths[1:])]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([*lines, "", NOTE, *(f"left out: {line}" for line in versus.skipped)])


def draw_frames(axes: Axes, versus: Versus, found: Comparison) -> None:
    """A point a frame, A's value across and B's up; on the diagonal they are equal."""
    key = KEYS[found.key]
    values = np.array(versus.values(found.key))
    values = values[:, np.isfinite(values).all(axis=0)]
    better = (values[1] > values[0]) == key.higher_is_better
    names = f"A: {_short(versus.first.name)}", f"B: {_short(versus.second.name)}"
    plain_axes(axes, key.label, *names)
    low, high = values.min(), values.max()
    margin = 0.05 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=INK, alpha=0.4, linewidth=1)
    count, colours = values.shape[1], np.where(better, ACCENT, SECOND)
    look: dict = {"s": 9 if count < 400 else 4, "alpha": 0.55, "linewidths": 0}
    axes.scatter(values[0], values[1], c=colours, rasterized=count > MANY, **look)
    axes.set(xlim=limits, ylim=limits, box_aspect=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    share = f"B better in {100 * (found.win_rate or 0):.0f} %, p {p_text(found.p_value)}"
    place: dict = {"x": 0.03, "y": 0.96, "ha": "left", "va": "top"}  # on the side of the worse
    if key.higher_is_better:
        place = {"x": 0.97, "y": 0.04, "ha": "right", "va": "bottom"}
    axes.text(**place, s=share, transform=axes.transAxes, color=INK, size=8)


def _short(name: str) -> str:
    """At most 34 letters; what stands between two dollars is no formula."""
    name = name if len(name) <= 34 else f"{name[:16]}\N{HORIZONTAL ELLIPSIS}{name[-16:]}"
    return name.replace("$", r"\$")


def panels(versus: Versus) -> list[Drawing]:
    """The frames of each figure. The scaled LPIPS look like the unscaled ones: see the table."""
    return [
        partial(draw_frames, versus=versus, found=figure)
        for figure in versus.figures
        if figure.wins is not None and not figure.key.endswith("_scaled")
    ]

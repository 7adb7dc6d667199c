"""Drawings of a report: training curves, the spread of a figure over samples, two runs.

Two runs side by side are a table for a terminal too.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metrics.intervals import FLIPS, Comparison
from metrics.registry import KEYS, Key
from metrics.reporting.data import Curve
from metrics.reporting.runs import Versus

Drawing = Callable[[Axes], None]
INK = "#010203"  # becomes `currentColor` in a page, so that it can be read on light and dark
ACCENT, SECOND = "#e8590c", "#1c7ed6"
SMOOTHING = 0.05  # of all points: the share that a smoothed one averages over
STYLE = Path(__file__).with_name("plots.mplstyle")
HEAD = ("figure", "A", "B", "B - A", "95 % interval", "p", "B better in", "frames", "better")
NOTE = (
    "Intervals: whole clips resampled. p: paired sign-flip test over clips (of FID: normal, from\n"
    "resampled clips), not corrected for the number of figures. In the share of frames in which B\n"
    "is better a tie counts half."
)
MANY = 1500  # points that an SVG holds one by one; more become an image


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean, over fewer values at the ends."""
    half = int(len(values) * SMOOTHING / 2)
    if half < 1:
        return values
    window = np.ones(2 * half + 1)
    counts = np.convolve(np.ones(len(values)), window, "same")
    return np.convolve(values, window, "same") / counts


def plain_axes(axes: Axes, title: str, across: str = "", up: str = "") -> None:
    """Axes with their names."""
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def draw_curve(axes: Axes, curve: Curve) -> None:
    """Training loss as a faint line with its running mean, validation loss with its points."""
    plain_axes(axes, curve.title, "step", "loss")
    for name, points in curve.lines.items():
        steps, values = np.array(sorted(points), dtype=np.float64).T
        if name == "training":
            axes.plot(steps, values, color=ACCENT, linewidth=0.8, alpha=0.3)
            axes.plot(steps, smooth(values), color=ACCENT, linewidth=1.8, label=name)
        else:
            points_shown: dict = {"marker": "o", "markersize": 3} if len(steps) < 40 else {}
            axes.plot(steps, values, color=SECOND, linewidth=1.8, label=name, **points_shown)
    if len(curve.lines) > 1:
        axes.legend()


def draw_histogram(axes: Axes, values: Sequence[float], title: str, signed: bool) -> None:
    """How often a figure takes which value; below zero in another colour where that says much."""
    plain_axes(axes, title, up="frames")
    counts, edges = np.histogram(values, bins=min(24, max(6, len(values) // 4)))
    centres = (edges[1:] + edges[:-1]) / 2
    colours = [SECOND if signed and centre < 0 else ACCENT for centre in centres]
    axes.bar(centres, counts, width=0.92 * np.diff(edges), color=colours)
    axes.axvline(float(np.mean(values)), color=INK, linewidth=1.2, linestyle="--", alpha=0.7)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(7))


def to_svg(draw: Drawing, size: tuple[float, float] = (5.4, 2.7)) -> str:
    """A drawing as an <svg> element for a page, `size` in inches.

    It is transparent, its text stays text, and ink takes the page's colour.
    """
    out = io.StringIO()
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue().replace(INK, "currentColor")
    return '<svg class="drawing" role="img" ' + text.partition("<svg ")[2]


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

"""Drawings of a report: training curves and the spread of a figure over samples."""

import io
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metrics.reporting.data import Curve

Drawing = Callable[[Axes], None]
INK = "#010203"  # becomes `currentColor` in a page, so that it can be read on light and dark
ACCENT, SECOND = "#e8590c", "#1c7ed6"
SMOOTHING = 0.05  # of all points: the share that a smoothed one averages over
RC = {"svg.fonttype": "none", "font.size": 9.0, "svg.hashsalt": "report"}


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
    axes.set_title(title, color=INK, fontsize=10, loc="left", fontweight="bold")
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_alpha(0.35)
    axes.tick_params(colors=INK, length=0, pad=5)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
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
        axes.legend(frameon=False, labelcolor=INK)


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
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    draw(axes)
    out = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue().replace(INK, "currentColor")
    return '<svg class="drawing" role="img" ' + text.partition("<svg ")[2]

"""A comparison of two runs as a table for a terminal, and its cells for other tables."""

from __future__ import annotations

from metrics.pairwise import FLIPS, Comparison
from metrics.registry import KEYS, Key
from metrics.reporting.runs import Versus

COLUMNS = ("figure", "A", "B", "B - A", "95 % interval", "p", "B better in", "frames", "better")
NOTE = (
    "Intervals: whole clips resampled. p: paired sign-flip test over clips (of FID: normal, from\n"
    "resampled clips), not corrected for the number of figures. In the share of frames in which B\n"
    "is better a tie counts half."
)


def p_text(p_value: float | None) -> str:
    if p_value is None:
        return "-"
    return f"<{1 / FLIPS:.4f}" if p_value < 1 / FLIPS else f"{p_value:.4f}"


def cells(found: Comparison, key: Key) -> tuple[str, ...]:
    """The columns of `COLUMNS` for one figure, in the figure's own digits."""
    digits = key.digits
    interval = (
        "-"
        if found.interval is None
        else f"{found.interval[0]:+.{digits}f} to {found.interval[1]:+.{digits}f}"
    )
    arrow = "\N{UPWARDS ARROW}" if key.higher_is_better else "\N{DOWNWARDS ARROW}"
    return (
        f"{key.title}{f', {key.unit}' if key.unit else ''} {arrow}",
        f"{found.first:.{digits}f}",
        f"{found.second:.{digits}f}",
        f"{found.difference:+.{digits}f}",
        interval,
        p_text(found.p_value),
        "-" if found.win_rate is None else f"{100 * found.win_rate:.1f} %",
        str(found.frames),
        found.better(key) or "-",
    )


def text_table(versus: Versus) -> str:
    """The whole comparison: who is who, a line a figure, what was left out."""
    rows = [COLUMNS, *(cells(found, KEYS[found.key]) for found in versus.figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"A: {versus.first.name} ({versus.first.folder})",
        f"B: {versus.second.name} ({versus.second.folder})",
        f"{len(versus.frames)} frames of {versus.clips} clips in both",
        "",
    ]
    for row in rows:
        padded = [
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([*lines, "", NOTE, *(f"left out: {line}" for line in versus.skipped)])

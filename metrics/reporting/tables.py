"""Tables of a report's page; all text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from metrics.registry import KEYS
from metrics.reporting.comparison_table import cells
from metrics.reporting.data import ReportData, Sample, rank
from metrics.reporting.figures import arrow, interval_text, is_signed, key_of, number, percent
from metrics.reporting.runs import Versus

ROWS = 1000  # of frames at most; the CSV has them all
TAIL = 0.1  # share of the frames whose figures are marked as good or bad
SPACE = "\N{NO-BREAK SPACE}"


def overall_table(data: ReportData) -> str:
    """Every figure of metric.json with its interval and meaning."""
    rows = []
    for name, value in data.overall.items():
        key = key_of(name)
        text = str(value) if isinstance(value, int) else number(value, key, is_signed(name))
        interval = interval_text(data.intervals.get(name), key, is_signed(name))
        rows.append(
            f"<tr><th>{escape(key.title)}{SPACE}{arrow(name)}</th>"
            f"<td class=number>{escape(text)}</td><td class=interval>{escape(interval)}</td>"
            f"<td class=meaning>{escape(key.meaning)}</td></tr>"
        )
    head = "<tr><th></th><th></th><th class=interval>95 % interval</th><th></th></tr>"
    return f"<table>{head if data.intervals else ''}{''.join(rows)}</table>"


def rates_table(rates: Iterable[tuple[str, float | None, object]]) -> str:
    """Shares as bars: (name, share, count)."""
    rows = []
    for name, rate, count in rates:
        width = 0 if rate is None else round(100 * min(max(rate, 0.0), 1.0))
        rows.append(
            f"<tr><th>{escape(str(name))}</th><td class=number>{percent(rate)}</td>"
            f'<td class=bar><i style="width:{width}%"></i></td>'
            f"<td class=number>{escape(str(count))}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _thresholds(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """(good from, bad up to) of a figure's rank; no frame reaches them where all are equal."""
    ranks = sorted(rank(sample, name) for sample in samples if name in sample.figures)
    place = int(TAIL * len(ranks))
    if place < 1 or ranks[place - 1] == ranks[-place]:
        return math.inf, -math.inf
    return ranks[-place], ranks[place - 1]


def frames_table(data: ReportData) -> str:
    """A row a frame, best first; the best and the worst tenth of each figure are marked."""
    columns = data.columns
    limits = {name: _thresholds(data.samples, name) for name in columns}
    head = "".join(f"<th>{escape(key_of(name).title)}{SPACE}{arrow(name)}</th>" for name in columns)
    rows = []
    for sample in data.samples[:ROWS]:
        values = []
        for name in columns:
            value, (good, bad) = rank(sample, name), limits[name]
            kind = " good" if value >= good else " bad" if value <= bad else ""
            text = number(sample.figures.get(name), key_of(name), is_signed(name))
            text = text.removesuffix(f" {key_of(name).unit}")
            values.append(f'<td class="number{kind}">{escape(text)}</td>')
        rows.append(
            f'<tr><th title="{escape(sample.key)}">{escape(sample.label)}'
            f"<small>{escape(sample.key)}</small></th>"
            f"{''.join(values)}</tr>"
        )
    return f"<table class=frames><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def versus_table(versus: Versus) -> str:
    """Every compared figure: both runs, difference with interval, p-value, share of frames."""
    names = ("", "A", "B", "B \N{MINUS SIGN} A", "95 % interval", "p", "B better in", "frames")
    head = "".join(f"<th{' class=number' if name else ''}>{name}</th>" for name in names)
    rows = []
    for found in versus.figures:
        title, *values, better = cells(found, KEYS[found.key])
        marked = {"B": " good", "A": " bad"}.get(better, "")
        tags = [
            f'<td class="number{marked if place == 2 else ""}">{escape(_minus(value))}</td>'
            for place, value in enumerate(values)
        ]
        rows.append(f"<tr><th>{escape(title)}</th>{''.join(tags)}</tr>")
    return f'<table class="versus"><tr>{head}</tr>{"".join(rows)}</table>'


def _minus(text: str) -> str:
    return "\N{EN DASH}" if text == "-" else text.replace("-", "\N{MINUS SIGN}")

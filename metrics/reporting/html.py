"""A report as one HTML file: pictures, styles and drawings inside, no script, all text escaped."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from egogen.frames import read_rgb
from metrics.registry import KEYS
from metrics.reporting.comparison import panels as versus_panels
from metrics.reporting.comparison_table import NOTE
from metrics.reporting.curves import draw_curve, draw_histogram, drawing, to_svg
from metrics.reporting.data import ReportData, Sample, gained_and_lost, generated_frame
from metrics.reporting.figures import headline, is_signed, key_of, number
from metrics.reporting.tables import ROWS, frames_table, overall_table, rates_table, versus_table

PICTURE_WIDTH = 400  # pixels at most, shown at some 270
QUALITY = 84
CHANGED = 4  # frames that gained and lost most against another run, each at most
SECTIONS = {
    "best": ("Best", "Best {figure} first."),
    "worst": ("Worst", "Worst {figure} first."),
    "others": ("In between", "Taken at equal distances from all other frames, by {figure}."),
}
STYLE = Path(__file__).with_name("report.css")


def picture_uri(path: Path) -> str:
    """A picture as a JPEG data URI, made smaller where it is wider than shown."""
    image = read_rgb(path)
    if image.width > PICTURE_WIDTH:
        height = max(1, round(image.height * PICTURE_WIDTH / image.width))
        image = image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _headline(data: ReportData) -> str:
    cells = []
    for place, cell in enumerate(headline(data)):
        value, _, unit = cell.figure.partition(" ")
        interval = f"<i>95 %: {escape(cell.interval)}</i>" if cell.interval else ""
        cells.append(
            f"<div{' class=lead-figure' if place == 0 else ''}><b>{escape(value)}"
            f"<small>{escape(unit)}</small></b><span>{escape(cell.name)}</span>{interval}"
            f"<em>{escape(cell.meaning)}</em></div>"
        )
    return f'<section class="headline">{"".join(cells)}</section>'


def figure_words(sample: Sample) -> list[tuple[str, str]]:
    """(text, "good" | "bad" | "") of a frame: the oracle's word, then its figures."""
    words = []
    if sample.done is not None:
        text = "action done" if sample.done else f"not done: {sample.why_not or 'not found'}"
        words.append((text, "good" if sample.done else "bad"))
    for name, value in sample.figures.items():
        if name in KEYS and not name.endswith("_scaled"):
            kind = "" if not is_signed(name) else "good" if value > 0 else "bad"
            words.append(
                (f"{key_of(name).title} {number(value, key_of(name), is_signed(name))}", kind)
            )
    return words


def _words(words: Sequence[tuple[str, str]]) -> str:
    """What is good or bad as coloured chips, the rest as a plain list beside each other."""
    chips = "".join(f'<span class="{kind}">{escape(text)}</span>' for text, kind in words if kind)
    plain = "".join(f"<span>{escape(text)}</span>" for text, kind in words if not kind)
    return "".join(
        f'<div class="{name}">{spans}</div>'
        for name, spans in (("chips", chips), ("facts", plain))
        if spans
    )


def _sample(
    sample: Sample,
    words: Sequence[tuple[str, str]] | None = None,
    first: tuple[str, Path] | None = None,
) -> str:
    """One frame; `words` stand in place of its figures, `first` in place of its source."""
    figures = "".join(
        f'<figure class="{kind}"><img loading="lazy" alt="{escape(name)}: {escape(sample.label)}" '
        f'src="{picture_uri(path)}"><figcaption>{escape(name)}</figcaption></figure>'
        for kind, name, path in (
            ("source", *(first or ("Source", sample.source))),
            ("generated", "Generated", sample.generated),
            ("target", "Ground truth", sample.target),
        )
    )
    text = f"<p>{escape(sample.description)}</p>" if sample.description else ""
    seen = "".join(
        f"<p class=seen><b>{escape(title)}</b> sees: {escape(caption)}</p>"
        for title, caption in sample.captions.items()
    )
    facts = _words(figure_words(sample) if words is None else words)
    return (
        f'<article class="sample"><div class="images">{figures}</div><div class="text">'
        f"<h3>{escape(sample.label)}</h3>{text}{seen}{facts}"
        f'<p class="key">{escape(sample.key)}</p></div></article>'
    )


def _columns(*names: str) -> str:
    heads = "".join(f"<span>{escape(name)}</span>" for name in names)
    return f'<div class="columns-row"><div class="columns">{heads}</div></div>'


def _section(kind: str, samples: Sequence[Sample], ranked_by: str) -> str:
    if not samples:
        return ""
    title, hint = SECTIONS[kind]
    figure = key_of(ranked_by).title if ranked_by else "name"
    return (
        f'<section id="{kind}"><h2>{title}</h2>'
        f'<p class="hint">{escape(hint.format(figure=figure))}</p>'
        f"{_columns('Source', 'Generated', 'Ground truth')}{''.join(map(_sample, samples))}"
        "</section>"
    )


def _panel(title: str, content: str) -> str:
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="panel">{head}{content}</div>'


def spreads(data: ReportData) -> list[tuple]:
    """(drawing function, *its arguments) of the spread of each figure over the frames."""
    found: list[tuple] = []
    names = sorted(data.columns, key=lambda name: name != data.ranked_by)  # that one first
    for name in names:
        values = [sample.figures.get(name, math.nan) for sample in data.samples]
        values = [value for value in values if math.isfinite(value)]
        if len(values) >= 2:
            key = key_of(name)
            unit = f", {key.unit}" if key.unit else ""
            title = f"{key.title}{unit}, of {len(values)} frames"
            found.append((draw_histogram, values, title, is_signed(name)))
    return found


def plots(data: ReportData) -> list[tuple]:
    """Training curves, then `spreads`."""
    return [(draw_curve, curve) for curve in data.curves] + spreads(data)


def _drawings(wanted: Sequence[tuple], size=(5.4, 2.7)) -> str:
    """A panel a drawing."""
    return "".join(
        _panel("", to_svg(drawing(function, *arguments, size=size)))
        for function, *arguments in wanted
    )


def _spreads(data: ReportData) -> str:
    panels = _drawings(spreads(data))
    if not panels:
        return ""
    return (
        '<section id="spread"><h2>Spread over the frames</h2><p class="hint">Dashed: the mean.</p>'
        f'<div class="panels">{panels}</div></section>'
    )


def _panels(data: ReportData) -> str:
    panels = []
    by_verb = (data.score or {}).get("by_verb")
    if isinstance(by_verb, dict) and by_verb:
        rates = [(verb, row.get("done_rate"), row.get("count")) for verb, row in by_verb.items()]
        panels.append(_panel("Action done, by verb", rates_table(rates)))
    if data.descriptions:
        facts = ("verb", "object", "hand", "target", "all")
        rates = [(name, data.descriptions[name], "") for name in facts if name in data.descriptions]
        panels.append(_panel("Descriptions that state it right", rates_table(rates)))
    curves = _drawings([(draw_curve, curve) for curve in data.curves])
    rows = [f'<div class="panels">{row}</div>' for row in ("".join(panels), curves) if row]
    hint = "Intervals: 95 %, by resampling whole clips." if data.intervals else ""
    overall = f'<div class="panel full">{overall_table(data)}</div>'
    return f'<section><h2>Figures</h2><p class="hint">{hint}</p>{overall}{"".join(rows)}</section>'


def _versus(data: ReportData, count: int) -> str:
    """The comparison with another run, A: table, drawings, and the frames that changed most."""
    versus = data.versus
    if versus is None:
        return ""
    drawings = _drawings(versus_panels(versus), size=(3.7, 3.5))
    left_out = "".join(f"<br>Left out: {escape(line)}" for line in versus.skipped)
    text = (
        '<section id="versus"><h2>Compared with another run</h2><p class="hint">'
        f"A: {escape(versus.first.name)}, B: {escape(versus.second.name)} (this run), "
        f"{len(versus.frames)} frames of {versus.clips} clips in both. {escape(NOTE)}{left_out}</p>"
        f"{_panel('', versus_table(versus))}"
        f'<div class="panels narrow">{drawings}</div></section>'
    )
    if data.other_images is None:
        return text
    key = key_of(data.ranked_by)
    changed = zip(("Gained", "Lost"), ("good", "bad"), gained_and_lost(data, count), strict=True)
    for title, kind, changes in changed:
        if not changes:
            continue
        articles = "".join(
            _sample(
                sample,
                [(f"{key.title} {number(change, key, True)}", kind)],
                ("A", generated_frame(data.other_images, sample.frame)),
            )
            for sample, change in changes
        )
        text += (
            f'<section id="{title.lower()}"><h2>{title} most over A</h2><p class="hint">'
            f"By {escape(key.title)}; the change is B − A.</p>"
            f"{_columns('A', 'B, this run', 'Ground truth')}{articles}</section>"
        )
    return text


def _frames(data: ReportData) -> str:
    """Every frame's figures, folded."""
    if not data.columns:
        return ""
    shown = min(ROWS, len(data.samples))
    return (
        '<section id="frames"><h2>Every frame</h2><p class="hint">The best and the worst tenth of '
        "each figure are marked. All values are in per_sample.csv beside metric.json.</p>"
        f"<details><summary>{shown} of {len(data.samples)} frames, best first</summary>"
        f'<div class="panel wide">{frames_table(data)}</div></details></section>'
    )


def page(data: ReportData, chosen: dict[str, list[Sample]]) -> str:
    """The whole page; `chosen` are the samples of each section."""
    shown = sum(map(len, chosen.values()))
    changed = min(CHANGED, len(chosen["best"]))
    sections = "".join(_section(kind, chosen[kind], data.ranked_by) for kind in SECTIONS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style>"
        f'</head><body><main><header><h1>{escape(data.title)}</h1><p class="lead">'
        f"{escape(data.subtitle)}</p></header>{_headline(data)}{_panels(data)}"
        f"{_versus(data, changed)}{sections}{_spreads(data)}{_frames(data)}"
        f"<footer>{shown} of {len(data.samples)} frames shown with pictures.</footer>"
        "</main></body></html>\n"
    )

"""A report as one HTML file: pictures, styles and drawings inside, no script, all text escaped."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from egogen.frames import read_rgb
from metrics.registry import KEYS, Key
from metrics.report_curves import draw_curve, draw_histogram, drawing, to_svg
from metrics.report_data import ReportData, Sample

PICTURE_WIDTH = 400  # pixels at most, shown at some 270
QUALITY = 84
SECTIONS = {
    "best": ("Best", "Largest {figure} first."),
    "worst": ("Worst", "Smallest {figure} first."),
    "others": ("In between", "Taken at equal distances from all other frames, by {figure}."),
}
CELLS = 7  # figures in the headline at most
HEADLINE = ("psnr_changed_gain", "psnr", "fid", "lpips_alex", "clip_image_sim", "psnr_changed")
COUNTS = {
    "samples": "Frames measured",
    "problems": "Frames left out",
    "psnr_identical": "Frames equal to their truth",
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


def number(value: float | None, key: Key, signed: bool = False) -> str:
    """`+3.21 dB`; a dash for what has no value."""
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    if math.isinf(value):
        return "equal" if value > 0 else "\N{EN DASH}"
    text = f"{value:{'+' if signed else ''}.{key.digits}f}".replace("-", "\N{MINUS SIGN}")
    return f"{text} {key.unit}".strip()


def percent(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{100 * value:.0f} %"


def key_of(name: str) -> Key:
    return KEYS.get(name) or Key(COUNTS.get(name, name.replace("_", " ")), "", digits=4)


def headline(data: ReportData) -> list[tuple[str, str, str]]:
    """(figure, name, explanation) of what matters most, first the action itself."""
    cells = []
    if data.score:
        others = data.score.get("other_action_rate")
        cells.append(
            (
                percent(data.score.get("done_rate")),
                "Action done",
                "read from the frame by the oracle"
                + (f"; a sibling's action in {percent(others)}" if others is not None else ""),
            )
        )
    if data.swapped:
        cells.append(
            (
                percent(data.swapped.get("done_rate")),
                "Action done, control",
                "same frames, another action's description and features",
            )
        )
    if data.descriptions:
        right = data.descriptions.get("object_hand_target", data.descriptions.get("all"))
        count = data.descriptions.get("count")
        cells.append(
            (
                percent(right),
                "Descriptions right",
                "object, hand and target" + (f", of {count}" if count else ""),
            )
        )
    for name in HEADLINE:
        if name in data.overall and len(cells) < CELLS:
            key, value = key_of(name), data.overall[name]
            cells.append((number(value, key, name.endswith("gain")), key.title, key.meaning))
    return cells


def _headline(data: ReportData) -> str:
    cells = []
    for place, (figure, name, meaning) in enumerate(headline(data)):
        value, _, unit = figure.partition(" ")
        cells.append(
            f"<div{' class=lead-figure' if place == 0 else ''}><b>{escape(value)}"
            f"<small>{escape(unit)}</small></b><span>{escape(name)}</span>"
            f"<em>{escape(meaning)}</em></div>"
        )
    return f'<section class="headline">{"".join(cells)}</section>'


def _chips(sample: Sample) -> str:
    chips = []
    if sample.done is not None:
        text = "action done" if sample.done else f"not done: {sample.why_not or 'not found'}"
        chips.append(("good" if sample.done else "bad", text))
    for name, value in sample.figures.items():
        if name in KEYS and not name.endswith("_scaled"):
            gain = name.endswith("gain")
            kind = "" if not gain else "good" if value > 0 else "bad"
            chips.append((kind, f"{key_of(name).title} {number(value, key_of(name), gain)}"))
    return "".join(
        f'<span class="{kind}">{escape(text)}</span>' if kind else f"<span>{escape(text)}</span>"
        for kind, text in chips
    )


def _sample(sample: Sample) -> str:
    figures = "".join(
        f'<figure class="{kind}"><img loading="lazy" alt="{name}: {escape(sample.label)}" '
        f'src="{picture_uri(path)}"><figcaption>{name}</figcaption></figure>'
        for kind, name, path in (
            ("source", "Source", sample.source),
            ("generated", "Generated", sample.generated),
            ("target", "Ground truth", sample.target),
        )
    )
    text = f"<p>{escape(sample.description)}</p>" if sample.description else ""
    return (
        f'<article class="sample"><div class="images">{figures}</div><div class="text">'
        f'<h3>{escape(sample.label)}</h3>{text}<div class="chips">{_chips(sample)}</div>'
        f'<p class="key">{escape(sample.key)}</p></div></article>'
    )


def _section(kind: str, samples: Sequence[Sample], ranked_by: str) -> str:
    if not samples:
        return ""
    title, hint = SECTIONS[kind]
    figure = key_of(ranked_by).title.lower() if ranked_by else "name"
    figure = figure.replace("psnr", "PSNR")
    heads = "".join(f"<span>{name}</span>" for name in ("Source", "Generated", "Ground truth"))
    return (
        f'<section id="{kind}"><h2>{title}</h2><p class="hint">{hint.format(figure=figure)}</p>'
        f'<div class="columns-row"><div class="columns">{heads}</div></div>'
        f"{''.join(map(_sample, samples))}</section>"
    )


def _panel(title: str, content: str) -> str:
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="panel">{head}{content}</div>'


def _overall_table(overall: dict[str, float | None]) -> str:
    rows = []
    for name, value in overall.items():
        key = key_of(name)
        text = str(value) if isinstance(value, int) else number(value, key)
        arrow = "" if name not in KEYS else "\N{NO-BREAK SPACE}\N{UPWARDS ARROW}"
        if name in KEYS and not key.higher_is_better:
            arrow = "\N{NO-BREAK SPACE}\N{DOWNWARDS ARROW}"
        rows.append(
            f"<tr><th>{escape(key.title)}{arrow}</th><td class=number>{escape(text)}</td>"
            f"<td class=meaning>{escape(key.meaning)}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _rates_table(rates: Iterable[tuple[str, float | None, object]]) -> str:
    rows = []
    for name, rate, count in rates:
        width = 0 if rate is None else round(100 * min(max(rate, 0.0), 1.0))
        rows.append(
            f"<tr><th>{escape(str(name))}</th><td class=number>{percent(rate)}</td>"
            f'<td class=bar><i style="width:{width}%"></i></td>'
            f"<td class=number>{escape(str(count))}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def plots(data: ReportData) -> list[tuple]:
    """(drawing function, *its arguments): training curves, then the spread over all samples."""
    found: list[tuple] = [(draw_curve, curve) for curve in data.curves]
    values = [sample.figures.get(data.ranked_by, math.nan) for sample in data.samples]
    values = [value for value in values if math.isfinite(value)]
    if len(values) >= 2:
        key = key_of(data.ranked_by)
        title = f"{key.title}, {key.unit}, of {len(values)} frames"
        found.append((draw_histogram, values, title))
    return found


def _panels(data: ReportData) -> str:
    panels = [_panel("All figures", _overall_table(data.overall))]
    by_verb = (data.score or {}).get("by_verb")
    if isinstance(by_verb, dict) and by_verb:
        rates = [(verb, row.get("done_rate"), row.get("count")) for verb, row in by_verb.items()]
        panels.append(_panel("Action done, by verb", _rates_table(rates)))
    if data.descriptions:
        facts = ("verb", "object", "hand", "target", "all")
        rates = [(name, data.descriptions[name], "") for name in facts if name in data.descriptions]
        panels.append(_panel("Descriptions that state it right", _rates_table(rates)))
    drawings = [
        _panel("", to_svg(drawing(function, *arguments))) for function, *arguments in plots(data)
    ]
    rows = [f'<div class="panels">{"".join(row)}</div>' for row in (panels, drawings) if row]
    return f"<section><h2>Figures</h2>{''.join(rows)}</section>"


def page(data: ReportData, chosen: dict[str, list[Sample]]) -> str:
    """The whole page; `chosen` are the samples of each section."""
    shown = sum(map(len, chosen.values()))
    sections = "".join(_section(kind, chosen[kind], data.ranked_by) for kind in SECTIONS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style>"
        f'</head><body><main><header><h1>{escape(data.title)}</h1><p class="lead">'
        f"{escape(data.subtitle)}</p></header>{_headline(data)}{_panels(data)}{sections}"
        f"<footer>{shown} of {len(data.samples)} frames shown. Every figure of every frame is in "
        "per_sample.csv beside metric.json.</footer></main></body></html>\n"
    )

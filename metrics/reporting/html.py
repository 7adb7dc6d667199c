"""A report as one HTML page: images, styles and drawings inside, no script.

`report.html.j2` beside this module is the page; it escapes all text. Here is what it shows.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from egogen.frames import data_uri, read_rgb
from metrics.frame_pairs import frame_file
from metrics.registry import KEYS
from metrics.reporting.data import ReportData, Sample, gained_and_lost, rank
from metrics.reporting.figures import arrow, interval_text, is_signed, key_of, number, percent
from metrics.reporting.plots import NOTE, Drawing, cells, draw_curve, draw_histogram, panels, to_svg

IMAGE_WIDTH = 400  # pixels at most, shown at some 270
QUALITY = 84
CHANGED = 4  # frames that gained and lost most against another run, each at most
ROWS = 1000  # frames in the table at most; the CSV has them all
TAIL = 0.1  # share of the frames whose figures are marked as good or bad


class Word(NamedTuple):
    """A text and what it means: "good", "bad" or ""."""

    text: str
    kind: str


def image_uri(path: Path) -> str:
    """An image as a JPEG data URI, made smaller where it is wider than shown."""
    image = read_rgb(path)
    if image.width > IMAGE_WIDTH:
        height = max(1, round(image.height * IMAGE_WIDTH / image.width))
        image = image.resize((IMAGE_WIDTH, height), Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG", quality=QUALITY)


def figure_words(sample: Sample) -> list[Word]:
    """What the oracle found in a frame, then the frame's figures."""
    words = []
    if sample.done is not None:
        text = "action done" if sample.done else f"not done: {sample.why_not or 'not found'}"
        words.append(Word(text, "good" if sample.done else "bad"))
    for name, value in sample.figures.items():
        if name in KEYS and not name.endswith("_scaled"):
            kind = "" if not is_signed(name) else "good" if value > 0 else "bad"
            words.append(Word(f"{key_of(name).title} {number(name, value)}", kind))
    return words


def spreads(data: ReportData) -> list[Drawing]:
    """Histograms of each figure over the frames, first the one that ranks them."""
    found: list[Drawing] = []
    for name in sorted(data.columns, key=lambda name: name != data.ranked_by):
        values = [sample.figures.get(name, math.nan) for sample in data.samples]
        values = [value for value in values if math.isfinite(value)]
        if len(values) >= 2:
            title = f"{key_of(name).label}, of {len(values)} frames"
            signed = is_signed(name)
            found.append(partial(draw_histogram, values=values, title=title, signed=signed))
    return found


def _thresholds(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """(good from, bad up to) of a figure's rank; no frame reaches them where all are equal."""
    ranks = sorted(rank(sample, name) for sample in samples if name in sample.figures)
    place = int(TAIL * len(ranks))
    if place < 1 or ranks[place - 1] == ranks[-place]:
        return math.inf, -math.inf
    return ranks[-place], ranks[place - 1]


def frame_rows(data: ReportData) -> list[tuple[Sample, list[Word]]]:
    """A row a frame, best first; the best and the worst tenth of each figure are marked."""
    limits = {name: _thresholds(data.samples, name) for name in data.columns}
    rows = []
    for sample in data.samples[:ROWS]:
        words = []
        for name, (good, bad) in limits.items():
            value = rank(sample, name)
            kind = "good" if value >= good else "bad" if value <= bad else ""
            words.append(Word(number(name, sample.figures.get(name), unit=False), kind))
        rows.append((sample, words))
    return rows


def page(data: ReportData, chosen: dict[str, list[Sample]]) -> str:
    """The report; `chosen` are the samples of each section."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    of_figures = (arrow, interval_text, key_of, number, percent)
    for function in (*of_figures, cells, figure_words, frame_file, image_uri, to_svg):
        environment.globals[function.__name__] = function
    gained, lost = gained_and_lost(data, min(CHANGED, len(chosen["best"])))
    return environment.get_template("report.html.j2").render(
        data=data,
        chosen=chosen,
        curves=[partial(draw_curve, curve=curve) for curve in data.curves],
        versus_note=NOTE,
        versus_drawings=panels(data.versus) if data.versus else [],
        changed=[("Gained", "good", gained), ("Lost", "bad", lost)],
        spreads=spreads(data),
        frame_rows=frame_rows(data),
    )

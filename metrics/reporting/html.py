"""A report as one HTML page: images, styles, drawings and a script inside, nothing from outside.

`report.html.j2` beside this module is the page; it escapes all text. Here is what it shows. Without
its script (`report.js`: filter, sort, enlarge) it is whole.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from egogen.frames import data_uri, read_rgb
from metrics.frame_pairs import frame_file
from metrics.reporting.data import ReportData, Sample, gained_and_lost, rank, verb_of
from metrics.reporting.figures import arrow, interval_text, is_signed, key_of, number, percent
from metrics.reporting.plots import NOTE, Drawing, cells, draw_curve, draw_histogram, panels, to_svg

IMAGE_WIDTH = 400  # pixels at most, shown at some 270
QUALITY = 84
CHANGED = 4  # frames that gained and lost most against another run, each at most
ROWS = 1000  # frames in the table at most; the CSV has them all
TAIL = 0.1  # share of the frames whose figures are marked as good or bad


def image_uri(path: Path, like: Path | None = None) -> str:
    """An image as a JPEG data URI, in the size of `like`, made smaller where wider than shown."""
    image = read_rgb(path)
    width, height = (read_rgb(like) if like else image).size
    share = min(1.0, IMAGE_WIDTH / width)
    size = round(share * width), max(1, round(share * height))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG", quality=QUALITY)


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


def frame_rows(data: ReportData) -> list[tuple[Sample, list[tuple[str, str]]]]:
    """A row a frame, best first; the best and the worst tenth of each figure are marked."""
    limits = {name: _thresholds(data.samples, name) for name in data.columns}
    rows = []
    for sample in data.samples[:ROWS]:
        words = []
        for name, (good, bad) in limits.items():
            value = rank(sample, name)
            kind = "good" if value >= good else "bad" if value <= bad else ""
            words.append((number(name, sample.figures.get(name), unit=False), kind))
        rows.append((sample, words))
    return rows


def render(template: str, **names: object) -> str:
    """A page of a template beside this module; all that it shows is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**names)


def page(data: ReportData, chosen: dict[str, list[Sample]]) -> str:
    """The report; `chosen` are the samples of each section."""
    gained, lost = gained_and_lost(data, min(CHANGED, len(chosen["best"])))
    of_figures = (arrow, interval_text, is_signed, key_of, number, percent)
    functions = (*of_figures, cells, frame_file, image_uri, to_svg, verb_of)
    return render(
        "report.html.j2",
        data=data,
        chosen=chosen,
        curves=[partial(draw_curve, curve=curve) for curve in data.curves],
        versus_note=NOTE,
        versus_drawings=panels(data.versus) if data.versus else [],
        changed=[("Gained", "good", gained), ("Lost", "bad", lost)],
        spreads=spreads(data),
        frame_rows=frame_rows(data),
        **{function.__name__: function for function in functions},
    )

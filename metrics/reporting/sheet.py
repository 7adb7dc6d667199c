"""A report as one picture: headline figures, the best and the worst frames, training curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

from egogen.frames import read_rgb
from metrics.reporting.comparison import comparison_picture
from metrics.reporting.curves import drawing, to_pixels
from metrics.reporting.data import ReportData, Sample
from metrics.reporting.figures import headline
from metrics.reporting.html import figure_words, plots

WIDTH, MARGIN, GAP = 1680, 56, 14  # pixels
PICTURE = (336, 190)  # box that every picture is fitted into
PAPER, CARD, INK, SOFT, LINE = "#fbfaf8", "#ffffff", "#1d1c1a", "#6d6a64", "#e5e1da"
ACCENT, GOOD, BAD = "#c2470a", "#2b7a3f", "#b3261e"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LINE_HEIGHT = 1.34  # of the font size


class Sheet:
    """A canvas that grows downwards; `y` is where the next thing goes."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH, 400), PAPER)
        self.y = MARGIN

    def reserve(self, height: int) -> ImageDraw.ImageDraw:
        """Make room for `height` more pixels below `y`."""
        needed = self.y + height + MARGIN
        if needed > self.image.height:
            taller = Image.new("RGB", (WIDTH, max(needed, 2 * self.image.height)), PAPER)
            taller.paste(self.image)
            self.image = taller
        return ImageDraw.Draw(self.image)

    def finish(self) -> Image.Image:
        return self.image.crop((0, 0, WIDTH, self.y + MARGIN))


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """Lines no wider than `width`; words too long are cut, text too long ends in an ellipsis."""
    found: list[str] = []
    current = ""
    words = text.split()
    while words:
        word = words.pop(0)
        trial = f"{current} {word}".strip()
        if face.getlength(trial) <= width:
            current = trial
        elif current:
            found.append(current)
            current = ""
            words.insert(0, word)
        else:
            cut = max(1, next(n for n in range(len(word), -1, -1) if _fits(word[:n], face, width)))
            found.append(word[:cut])
            words.insert(0, word[cut:])
    found += [current] if current else []
    if len(found) > lines:
        last = found[lines - 1]
        while last and not _fits(last + "\N{HORIZONTAL ELLIPSIS}", face, width):
            last = last[:-1]
        found = [*found[: lines - 1], last.rstrip() + "\N{HORIZONTAL ELLIPSIS}"]
    return found


def _fits(text: str, face: ImageFont.FreeTypeFont, width: float) -> bool:
    return face.getlength(text) <= width


def _write(draw, at, text: str, face, colour: str, width: float, lines: int) -> int:
    """Write wrapped text with its top left corner `at` -> y below it."""
    x, y = at
    for line in wrap(text, face, width, lines):
        draw.text((x, y), line, font=face, fill=colour)
        y += round(face.size * LINE_HEIGHT)
    return y


def _header(sheet: Sheet, data: ReportData) -> None:
    draw = sheet.reserve(420)
    width = WIDTH - 2 * MARGIN
    sheet.y = _write(draw, (MARGIN, sheet.y), data.title, font(38, True), INK, width, 2) + 4
    sheet.y = _write(draw, (MARGIN, sheet.y), data.subtitle, font(17), SOFT, width, 2) + 22
    cells = headline(data)
    if not cells:
        return
    step = (width + GAP) / len(cells)
    height = 176
    for place, (figure, name, interval, meaning) in enumerate(cells):
        left, inner = MARGIN + place * step, step - GAP - 36
        box = (left, sheet.y, left + step - GAP, sheet.y + height)
        draw.rounded_rectangle(box, 12, fill=CARD, outline=LINE)
        colour = ACCENT if place == 0 else INK
        size = 32
        while size > 18 and not _fits(figure, font(size, True), inner):
            size -= 1
        draw.text((left + 18, sheet.y + 14), figure, font=font(size, True), fill=colour)
        y = _write(draw, (left + 18, sheet.y + 60), name, font(15, True), INK, inner, 2)
        spread = f"95 %: {interval}" if interval else ""
        y = _write(draw, (left + 18, y), spread, font(12), INK, inner, 2)
        rest = (sheet.y + height - 4 - y) // 17
        _write(draw, (left + 18, y), meaning, font(13), SOFT, inner, rest)
    sheet.y += height


def _heading(sheet: Sheet, text: str, columns: bool) -> None:
    draw = sheet.reserve(90)
    sheet.y += 36
    draw.text((MARGIN, sheet.y), text, font=font(24, True), fill=INK)
    sheet.y += 40
    if columns:
        for place, name in enumerate(("SOURCE", "GENERATED", "GROUND TRUTH")):
            at = (MARGIN + 14 + place * (PICTURE[0] + GAP), sheet.y)
            draw.text(at, name, font=font(12, True), fill=SOFT)
        sheet.y += 22


def _sample(sheet: Sheet, sample: Sample) -> None:
    height = PICTURE[1] + 28
    draw = sheet.reserve(height)
    box = (MARGIN, sheet.y, WIDTH - MARGIN, sheet.y + height)
    draw.rounded_rectangle(box, 12, fill=CARD, outline=LINE)
    for place, path in enumerate((sample.source, sample.generated, sample.target)):
        picture = ImageOps.contain(read_rgb(path), PICTURE, Image.Resampling.LANCZOS)
        x = MARGIN + 14 + place * (PICTURE[0] + GAP)
        y = sheet.y + 14 + (PICTURE[1] - picture.height) // 2
        sheet.image.paste(picture, (x, y))
        if place == 1:
            frame = (x - 3, y - 3, x + picture.width + 2, y + picture.height + 2)
            draw.rectangle(frame, outline=ACCENT, width=2)
    left = MARGIN + 14 + 3 * (PICTURE[0] + GAP) + 10
    width = WIDTH - MARGIN - 18 - left
    y = _write(draw, (left, sheet.y + 16), sample.label, font(19, True), INK, width, 2)
    y = _write(draw, (left, y + 2), sample.description, font(15), SOFT, width, 3)
    _figures(draw, left, y + 6, width, sheet.y + height - 8, sample)
    sheet.y += height + GAP


def _figures(draw, left: int, y: int, width: int, bottom: int, sample: Sample) -> None:
    """The oracle's word and the figures, side by side as far as they fit."""
    colours = {"good": GOOD, "bad": BAD, "": INK}
    words = [(text, colours[kind]) for text, kind in figure_words(sample)]
    face, x = font(13), left
    for text, colour in words:
        text = (wrap(text, face, width, 1) or [""])[0]
        if x > left and x + face.getlength(text) > left + width:
            x, y = left, y + 19
        if y + 18 > bottom:
            break
        draw.text((x, y), text, font=face, fill=colour)
        x += round(face.getlength(text)) + 20


def _drawings(sheet: Sheet, data: ReportData) -> None:
    wanted = plots(data)
    if not wanted:
        return
    _heading(sheet, "Training and spread" if data.curves else "Spread", columns=False)
    columns = min(3, len(wanted))
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    height = 320
    for start in range(0, len(wanted), columns):
        draw = sheet.reserve(height)
        for place, (function, *arguments) in enumerate(wanted[start : start + columns]):
            x = MARGIN + place * (width + GAP)
            box = (x, sheet.y, x + width, sheet.y + height)
            draw.rounded_rectangle(box, 12, fill=CARD, outline=LINE)
            size = ((width - 32) / 120, (height - 32) / 120)
            plot = drawing(function, *arguments, INK, size=size)
            picture = Image.fromarray(to_pixels(plot, dpi=120))
            sheet.image.paste(picture, (x + 16, sheet.y + 16), picture)
        sheet.y += height + GAP


def _comparison(sheet: Sheet, data: ReportData) -> None:
    if data.versus is None:
        return
    _heading(sheet, "Compared with another run", columns=False)
    picture = comparison_picture(data.versus)
    size = (WIDTH - 2 * MARGIN, round(picture.height * (WIDTH - 2 * MARGIN) / picture.width))
    sheet.reserve(size[1])
    sheet.image.paste(picture.resize(size, Image.Resampling.LANCZOS), (MARGIN, sheet.y))
    sheet.y += size[1] + GAP


def sheet(data: ReportData, best: Sequence[Sample], worst: Sequence[Sample]) -> Image.Image:
    """Compose the picture, RGB, 1680 pixels wide."""
    canvas = Sheet()
    _header(canvas, data)
    for title, samples in (("Best", best), ("Worst", worst)):
        if samples:
            _heading(canvas, title, columns=True)
            for sample in samples:
                _sample(canvas, sample)
    _drawings(canvas, data)
    _comparison(canvas, data)
    return canvas.finish()

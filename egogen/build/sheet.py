"""Contact sheets: every pair side by side with its label, those with something wrong marked."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from egogen.atomic import atomic_path
from egogen.build.judge import Limits
from egogen.build.write import Pair, build_folder
from egogen.frames import read_rgb
from egogen.layout import frame_folder

COLUMNS, ROWS = 3, 6
CELL, GAP, TEXT = (220, 140), 12, 34
PAPER, INK, WRONG = "white", "#222222", "#b3261e"


def write_sheets(
    root: Path, dataset: str, pairs: Sequence[Pair], limits: Limits, pages: int
) -> list[Path]:
    """`ROOT/build/<dataset>/sheet_N.png`, at most `pages` of them; pairs to look at come first."""
    ordered = sorted(pairs, key=lambda pair: not limits.broken_by(pair.record))  # a stable sort
    written = []
    for page in range(min(pages, -(-len(ordered) // (COLUMNS * ROWS)))):
        group = ordered[page * COLUMNS * ROWS : (page + 1) * COLUMNS * ROWS]
        written.append(build_folder(root, dataset) / f"sheet_{page + 1}.png")
        with atomic_path(written[-1]) as temporary:
            _sheet(root, dataset, group, limits).save(temporary)
    return written


def _sheet(root: Path, dataset: str, pairs: Sequence[Pair], limits: Limits) -> Image.Image:
    width, height = 2 * CELL[0] + 4, CELL[1] + TEXT
    rows = -(-len(pairs) // COLUMNS)
    size = (COLUMNS * (width + GAP) + GAP, rows * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, pair in enumerate(pairs):
        left = GAP + index % COLUMNS * (width + GAP)
        top = GAP + index // COLUMNS * (height + GAP)
        folder = frame_folder(root, dataset, pair.row.split)
        for place, name in enumerate(pair.record["frames"]):
            image = ImageOps.pad(read_rgb(folder / name), CELL, color=PAPER)
            sheet.paste(image, (left + place * (CELL[0] + 4), top))
        colour, below = INK, f"{pair.row.clip_id}/{pair.row.id} ({pair.row.split})"
        if reasons := limits.broken_by(pair.record):
            colour, below = WRONG, f"{', '.join(reasons)}: {below}"
            box = (left - 3, top - 3, left + width + 2, top + CELL[1] + 2)
            draw.rectangle(box, outline=WRONG, width=3)
        for y, text, ink in ((3, pair.row.action, INK), (18, below, colour)):
            while len(text) > 3 and draw.textlength(text, font) > width:
                text = text[:-4] + "..."
            draw.text((left, top + CELL[1] + y), text, ink, font)
    return sheet

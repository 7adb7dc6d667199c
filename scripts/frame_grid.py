"""Draw a grid of frames: source, generated and ground truth, a row an entry, its action below.

    python scripts/frame_grid.py --images RUN/images --dataset-root DATA --dataset ego4d \
        --entries 4 --out docs/frames.jpg
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

sys.path[0] = str(Path(__file__).resolve().parents[1])

from egogen import layout  # noqa: E402
from egogen.actions import inside, read_actions  # noqa: E402
from egogen.atomic import atomic_path  # noqa: E402
from egogen.errors import EgoGenError, run_command  # noqa: E402
from egogen.flags import read_parser  # noqa: E402
from egogen.frames import read_rgb  # noqa: E402
from metrics.frame_pairs import SUFFIXES, frame_file  # noqa: E402
from metrics.reporting.data import read_score  # noqa: E402

COMMANDS = Path(__file__).with_name("commands.toml")
COLUMNS = ("source", "generated", "ground truth")
BOX, GAP, LINE = (320, 180), 8, 26  # pixels: an image, the space between two, a line of text


def draw_grid(rows: list[tuple[str, list[Path]]]) -> Image.Image:
    """Rows of (text, a file for each of COLUMNS) -> an RGB image, on white."""
    width, height = BOX[0] + GAP, BOX[1] + LINE + GAP
    grid = Image.new("RGB", (len(COLUMNS) * width + GAP, LINE + len(rows) * height), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(16)
    for column, name in enumerate(COLUMNS):
        draw.text((GAP + (column + 0.5) * width, LINE / 2), name, "black", font, anchor="mm")
    for top, (text, paths) in zip(range(LINE, grid.height, height), rows, strict=True):
        for column, path in enumerate(paths):
            image = ImageOps.pad(read_rgb(path), BOX, Image.Resampling.LANCZOS, "white")
            grid.paste(image, (GAP + column * width, top))
        draw.text((grid.width / 2, top + BOX[1] + LINE / 2), text, "black", font, anchor="mm")
    return grid


def main(argv: Sequence[str]) -> int:
    parser = read_parser(COMMANDS, "frame_grid", __doc__, {"dataset": layout.DATASETS})
    options = parser.parse_args(argv)
    if options.out.suffix.lower() not in SUFFIXES:
        raise EgoGenError(f"--out {options.out}: expected a name that ends in .jpg or .png")
    split = options.dataset_root, options.dataset, "val"
    frames = layout.frame_folder(*split)
    entries = read_actions(options.edit_file or layout.action_file(*split))
    if score := read_score(options.score):
        rows_done = (row for row in score.get("rows", []) if row.get("done"))
        done = {f"{row['clip']}/{row['action_id']}" for row in rows_done}
        entries = [entry for entry in entries if entry.key in done]
    count = min(options.entries, len(entries))
    if count < 1:
        raise EgoGenError(f"--entries {options.entries} of {len(entries)}: expected at least 1")
    rows = []
    for entry in (entries[(2 * n + 1) * len(entries) // (2 * count)] for n in range(count)):
        generated = frame_file(options.images, entry.image_1)
        files = [inside(frames, entry.image_0), generated, inside(frames, entry.image_1)]
        rows.append((entry.label.removeprefix("#C C "), files))
    with atomic_path(options.out) as temporary:
        draw_grid(rows).save(temporary, quality=88)
    print(f"written: {options.out}, {options.out.stat().st_size // 1000} KB")
    return 0


if __name__ == "__main__":
    run_command(main)

"""A dataset from one's own videos: `python -m egogen.build OUT --table CSV --videos DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from egogen.build.clips import clip_id, find_clips
from egogen.build.judge import REASONS, Limits
from egogen.build.sheet import write_sheets
from egogen.build.table import Row, Timing, read_table, with_clip_ids
from egogen.build.write import Request, build_folder, refuse_foreign, write_dataset, write_pairs
from egogen.errors import EXIT_INCOMPLETE, EgoGenError, command_parser, run_command
from egogen.jobs import lock
from egogen.layout import DATASETS, SPLITS

EXAMPLE = """example:
  python -m egogen.build data/own --table actions.csv --videos videos --drop similar blurred

actions.csv has a row a pair; times in seconds or as 1:02:03.5:
  clip,start,action,end,contact,split,id,description
  P01_05.mp4,83.2,pick up the mug,85.0,,train,,
Needed are clip, start and action. The source is --before seconds ahead of the start; the target is
at the contact, else at --fraction of the way to the end, else --after seconds behind the start."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    about = "Make a dataset that both stages read from videos (or folders of frames)."
    parser = command_parser(about, EXAMPLE, "python -m egogen.build")
    timing, limits = Timing(), Limits()
    add = parser.add_argument
    add("out", type=Path, help="dataset root to make, to finish or to bring up to date")
    add("--table", type=Path, required=True, help="CSV of the actions")
    add("--videos", type=Path, required=True, help="folder of the videos or folders of frames")
    add("--name", choices=DATASETS, default="epickitchen", help="whose layout and label style")
    add("--split", choices=SPLITS, default="train", help="of rows without one")
    add("--before", type=float, default=timing.before, help="default: %(default)s s")
    add("--fraction", type=float, default=timing.fraction, help="default: %(default)s")
    add("--after", type=float, default=timing.after, help="default: %(default)s s")
    add("--height", type=int, help="scale frames to this height (default: as in the video)")
    add("--fps", type=float, help="frames a second of folders of frames")
    add("--min-difference", type=float, default=limits.difference, help="default: %(default)s")
    add("--min-sharpness", type=float, default=limits.sharpness, help="default: %(default)s")
    add("--drop", nargs="+", choices=REASONS, default=[], help="leave such pairs out")
    add("--sheets", type=int, default=5, help="contact sheets at most (default: %(default)s)")
    args = parser.parse_args(argv)
    for name, least in (("before", 0), ("fraction", 0), ("after", 0), ("height", 16), ("fps", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value <= 1e9 or name == "fps" and value == 0:
            raise EgoGenError(f"--{name} {value}: expected {least} to 1e9")
    return args


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    rows = read_table(args.table, args.split)
    timing = Timing(args.before, args.fraction, args.after)
    request = Request(args.name, timing, args.height, args.fps)
    places = find_clips(args.videos, [row.clip for row in rows])
    ids = {name: clip_id(place) for name, place in places.items()}
    rows = with_clip_ids(args.table, rows, ids)
    refuse_foreign(args.out, request)
    with lock(build_folder(args.out, args.name) / ".lock", "building"):
        return build(args, places, rows, request)


def build(
    args: argparse.Namespace, places: dict[str, Path], rows: Sequence[Row], request: Request
) -> int:
    """Write the dataset and say what became of it -> exit code."""
    limits = Limits(args.min_difference, args.min_sharpness)
    pairs, failures = write_pairs(args.out, places, rows, request)
    wrong = {pair.row: limits.broken_by(pair.record) for pair in pairs}
    kept = [pair for pair in pairs if not set(wrong[pair.row]) & set(args.drop)]
    write_dataset(args.out, args.name, pairs, kept)
    sheets = write_sheets(args.out, args.name, pairs, limits, args.sheets)
    for split in SPLITS:
        print(f"{split}: {sum(pair.row.split == split for pair in kept)} pairs")
    for reason in REASONS:
        named = [f"{r.clip_id}/{r.id}" for r, reasons in wrong.items() if reason in reasons]
        if named:
            what = "dropped" if reason in args.drop else "kept; --drop leaves them out"
            print(f"{reason}: {len(named)} ({what}): {', '.join(named[:10])}", end="")
            print(" ..." if len(named) > 10 else "")
    if sheets:
        print(f"look at {', '.join(map(str, sheets))}")
    for failure in failures:
        print(f"not built: {failure}", file=sys.stderr)
    return EXIT_INCOMPLETE if failures else 0


if __name__ == "__main__":
    run_command(main)

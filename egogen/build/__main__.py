"""A dataset from one's own data: `python -m egogen.build OUT --table FILE --videos DIR`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from egogen import DATASETS, EXIT_INCOMPLETE, SPLITS, EgoGenError, listed, lock, run_command
from egogen.build import write
from egogen.build.clips import Pictures, clip_ids, film_in, find_clips
from egogen.build.forms import FORMS, read_form
from egogen.build.judge import REASONS, Limits
from egogen.build.rows import PRE_FRAMES, Options, Row, Skipped, Table, Timing, with_clip_ids
from egogen.build.table import write_table
from egogen.flags import COMMANDS, read_parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    about = "Make a dataset that both stages read from videos (or folders of frames)."
    timing, limits = Timing(), Limits()
    choices = {"form": FORMS, "name": DATASETS, "split": SPLITS, "pre": PRE_FRAMES, "drop": REASONS}
    parser = read_parser(COMMANDS, "egogen.build", about, choices, **vars(timing))
    parser.set_defaults(pre=Options().pre, on=Options().on, max_change=limits.change)
    parser.set_defaults(min_difference=limits.difference, min_sharpness=limits.sharpness)
    args = parser.parse_args(argv)
    leasts = {"before": 0, "fraction": 0, "after": 0, "height": 16, "fps": 0, "sharpest": 1}
    for name, least in leasts.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= 1e9 or name == "fps" and value == 0:
            raise EgoGenError(f"--{name} {value}: expected {least} to 1e9")
    if args.sharpest and not (args.sharpest % 2 and args.sharpest < 100):
        raise EgoGenError(f"--sharpest {args.sharpest}: expected an odd number below 100")
    if args.form == "pairs" and args.table_only:
        raise EgoGenError("--table-only: ready pairs have no times, expected another form")
    if not args.table_only and not (args.out and args.videos):
        raise EgoGenError("expected OUT and --videos, or --table-only CSV")
    return args


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    timing = Timing(args.before, args.fraction, args.after)
    options = Options(args.split, timing, args.pre, args.on, args.video_info)
    name = args.name = args.name or FORMS[args.form].get("labels", "epickitchen")
    table = read_form(args.form, args.table, options)
    views = tuple(args.view or FORMS[args.form].get("views", ())) or None
    if table.rows and not args.table_only:
        places, rows = located(args, table, views or ())
    for reason in dict.fromkeys(skipped.reason for skipped in table.skipped):
        wheres = [skipped.where for skipped in table.skipped if skipped.reason == reason]
        shown = ", ".join(wheres) if args.list_skipped else listed(wheres)
        print(f"{args.table}: left out, {reason}: {len(wheres)} ({shown})", file=sys.stderr)
    if not table.rows:
        raise EgoGenError(f"{args.table}: no rows, expected one a pair at least")
    if args.table_only:
        write_table(args.table_only, table.rows, timing)
        print(f"{args.table_only}: {len(table.rows)} rows, to be built with --name {name}")
        return EXIT_INCOMPLETE if table.skipped else 0
    request = write.Request(name, timing, args.height, args.fps, args.sharpest, views)
    write.refuse_foreign(args.out, request)
    with lock(write.build_folder(args.out, name) / ".lock", "building"):
        return build(args, places, rows, request) or EXIT_INCOMPLETE * bool(table.skipped)


def located(
    args: argparse.Namespace, table: Table, views: Sequence[str]
) -> tuple[dict[str, Any], list[Row]]:
    """What each clip is read from, and the rows with their clips' ids.

    Official forms name more videos than people have: rows without are left out, if not all are.
    """
    clips = list(dict.fromkeys(row.clip for row in table.rows))
    if args.form == "pairs":
        places: dict[str, Any] = dict.fromkeys(clips, Pictures(args.videos))
        return places, with_clip_ids(args.table, table.rows, {clip: clip for clip in clips})
    found = find_clips(args.videos, clips, needed=args.form == "csv")
    if not found:
        raise EgoGenError(f"{args.videos}: none of the videos of {args.table}: {listed(clips)}")
    lacking = [row for row in table.rows if row.clip not in found]
    table.skipped.extend(Skipped(f"{row.clip} {row.id}", "no video") for row in lacking)
    rows = [row for row in table.rows if row.clip in found]
    if args.fps and args.form != "csv":  # said of what is there
        rows = [replace(row, fps=None) for row in rows]
    rows = with_clip_ids(args.table, rows, clip_ids(found, clips))
    return {clip: film_in(place, views) for clip, place in found.items()}, rows


def build(
    args: argparse.Namespace, places: dict[str, Any], rows: Sequence[Row], request: write.Request
) -> int:
    """Write the dataset and say what became of it -> exit code."""
    limits = Limits(args.min_difference, args.min_sharpness, args.max_change)
    pairs, failures = write.write_pairs(args.out, places, rows, request)
    wrong = {pair.row: limits.broken_by(pair.record) for pair in pairs}
    kept = [pair for pair in pairs if not set(wrong[pair.row]) & set(args.drop)]
    write.write_dataset(args.out, args.name, pairs, kept)
    sheets = write.write_sheets(args.out, args.name, pairs, limits, args.sheets)
    for split in SPLITS:
        print(f"{split}: {sum(pair.row.split == split for pair in kept)} pairs")
    for reason in REASONS:
        named = [f"{r.clip_id}/{r.id}" for r, reasons in wrong.items() if reason in reasons]
        if named:
            what = "dropped" if reason in args.drop else "kept; --drop leaves them out"
            print(f"{reason}: {len(named)} ({what}): {listed(named)}")
    if sheets:
        print(f"look at {', '.join(map(str, sheets))}")
    for failure in failures:
        print(f"not built: {failure}", file=sys.stderr)
    return EXIT_INCOMPLETE if failures else 0


if __name__ == "__main__":
    run_command(main)

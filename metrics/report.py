"""Write report.html of measured frames: one file, with all images inside."""

import sys
from pathlib import Path

if not __package__:  # run as a script: see the package's docstring
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from collections.abc import Sequence

from egogen import DESCRIPTION_KEY, EgoGenError, layout, read_parser, run_command, write_text
from egogen.settings import setting
from metrics import COMMANDS
from metrics.reporting import data
from metrics.reporting.runs import compare_runs, read_run
from metrics.results import default_folder


def gather(options: argparse.Namespace) -> data.ReportData:
    """Read everything the options name; raises EgoGenError for the first thing that is wrong."""
    root = options.dataset_root or setting("LEGO_DATASET")
    frames = layout.frame_folder(root, options.dataset, options.split)
    edit_file = options.edit_file or layout.action_file(root, options.dataset, options.split)
    metric_folder = options.metric or default_folder(options.gen_path)
    score = data.read_score(options.score, required=("done_rate",))
    overall, intervals = data.read_overall(metric_folder)
    places = frames, edit_file, metric_folder
    samples, ranked_by = data.read_samples_of(options, *places, score)
    curves = [data.read_curve(path, "Stage 1: description") for path in options.stage1_log]
    curves += [data.read_curve(path, "Stage 2: generation") for path in options.stage2_log]
    against, other_images = options.against, options.against_images
    if other_images is not None and against is None:
        raise EgoGenError("--against-images: expected --against, the results of that run")
    if other_images is not None and not other_images.is_dir():
        raise EgoGenError(f"--against-images {other_images}: no such folder")
    return data.ReportData(
        options.title or f"Action frames of {options.dataset} {options.split}",
        f"{len(samples)} frames in {options.gen_path}, descriptions of {edit_file}",
        samples,
        ranked_by,
        overall,
        score,
        data.read_score(options.description_score),
        curves,
        intervals,
        None if against is None else compare_runs(read_run(against), read_run(metric_folder)),
        other_images,
    )


def main(argv: Sequence[str]) -> int:
    choices = {"dataset": layout.DATASETS, "split": layout.SPLITS}
    parser = read_parser(COMMANDS, "report", __doc__, choices, llava_key=DESCRIPTION_KEY)
    options = parser.parse_args(argv)
    counts = [options.best, options.worst, options.others]
    if min(counts) < 0 or sum(counts) == 0:
        raise EgoGenError("--best, --worst, --others: expected counts of at least 0, not all 0")
    out = options.out or Path(os.path.abspath(options.gen_path)).parent / "report"
    shown, path = gather(options), out / "report.html"

    from metrics.reporting.html import page  # slow to import

    write_text(path, page(shown, data.select(shown.samples, *counts)))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    run_command(main)

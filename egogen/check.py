"""Check a dataset before work that takes hours: every problem is named, none stops the search.

    python -m egogen.check ROOT
    python -m egogen.check ROOT --dataset ego4d --split val --key llava_forecast_finetune \
        --image-features FEATURES/image/val --text-features FEATURES/text/val
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from egogen import layout
from egogen.actions import DESCRIPTION_KEY
from egogen.errors import EXIT_BAD_INPUT, EXIT_INCOMPLETE, EgoGenError, run_command
from egogen.split_check import SplitReport, check_split


def summary_table(reports: Sequence[SplitReport]) -> str:
    """One line a split; "good/asked" where they differ."""
    columns = ["entries", "metadata", "descriptions", "frames", "targets"]
    columns += ["image feats", "text feats"]
    lines = [["split", *columns, "problems"]]
    for report in reports:
        cells = []
        for column in columns:
            good, asked = report.good[column], report.asked[column]
            cells.append("-" if not asked else str(good) if good == asked else f"{good}/{asked}")
        lines.append([report.name, *cells, str(len(report.problems))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def feature_folder(values: Sequence[str], name: str, chosen: Sequence[tuple]) -> dict[tuple, str]:
    """`DIR` (one split is checked), `SPLIT=DIR` or `DATASET/SPLIT=DIR` -> folder of each."""
    folders = {}
    for value in values:
        target, _, folder = value.rpartition("=")
        wanted = [
            pair for pair in chosen if target in ("", pair[1]) or target == f"{pair[0]}/{pair[1]}"
        ]
        if len(wanted) != 1:
            raise EgoGenError(
                f"{name} {value}: fits {len(wanted)} of the splits to be checked, expected one; "
                "choose with --dataset and --split, or write DATASET/SPLIT=DIR"
            )
        if not Path(folder).is_dir():
            raise EgoGenError(f"{name} {folder}: no such folder, expected a feature store")
        folders[wanted[0]] = folder
    return folders


def _chosen(root: Path, datasets: Sequence[str], splits: Sequence[str]) -> list[tuple[str, str]]:
    """The (dataset, split) pairs to check; without --dataset those of which anything is there."""
    if not root.is_dir():
        raise EgoGenError(f"{root}: no such folder, expected a dataset root")
    present = [
        dataset
        for dataset in layout.DATASETS
        if layout.frame_folder(root, dataset, "").is_dir()
        or any(layout.action_file(root, dataset, split).exists() for split in layout.SPLITS)
    ]
    if not datasets and not present:
        raise EgoGenError(
            f"{root}: holds no dataset, expected EgoGen/ and "
            + " or ".join(f"{dataset}_{splits[0]}.json" for dataset in layout.DATASETS)
        )
    return [(dataset, split) for dataset in datasets or present for split in splits]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m egogen.check",
        description="Check a dataset: every problem on a line of its own, then a table. Exit code "
        "0: all in order; 1: something is wrong; 2: a dataset or split is missing or empty.",
        epilog="example: python -m egogen.check data/mini --dataset ego4d --split val "
        "--image-features feats/image/val --text-features feats/text/val",
    )
    parser.add_argument("root", type=Path, help="dataset root: holds EgoGen/ and the JSON files")
    parser.add_argument(
        "--dataset", action="append", choices=layout.DATASETS, help="default: those that are there"
    )
    parser.add_argument(
        "--split", action="append", choices=layout.SPLITS, help="default: train and val"
    )
    parser.add_argument(
        "--key", default=DESCRIPTION_KEY, help="field of the description (default: %(default)s)"
    )
    for kind in ("image", "text"):
        parser.add_argument(
            f"--{kind}-features",
            action="append",
            default=[],
            metavar="[[DATASET/]SPLIT=]DIR",
            help=f"store of {kind} features to check too; may be given per split",
        )
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    return parser


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    splits = options.split or list(layout.SPLITS)
    chosen = _chosen(options.root, options.dataset or [], splits)
    folders = {
        "image feats": feature_folder(options.image_features, "--image-features", chosen),
        "text feats": feature_folder(options.text_features, "--text-features", chosen),
    }
    reports, empty = [], 0
    for dataset, split in chosen:
        features = {
            column: found[dataset, split]
            for column, found in folders.items()
            if (dataset, split) in found
        }
        try:
            reports.append(
                check_split(options.root, dataset, split, options.key, features, options.workers)
            )
        except EgoGenError as error:
            print(f"problem: {error}")
            empty += 1
            continue
        for problem in reports[-1].problems:
            print(f"problem: {problem}")
    if reports:
        print(summary_table(reports))
    count = empty + sum(len(report.problems) for report in reports)
    print(f"problems: {count or 'none'}")
    if empty:
        return EXIT_BAD_INPUT
    return EXIT_INCOMPLETE if count else 0


if __name__ == "__main__":
    run_command(main)

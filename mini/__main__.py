"""Render first-person table scenes in the layout of the released dataset.

python -m mini runs/mini_data --pairs 1000 --seed 0
"""

from collections.abc import Sequence
from pathlib import Path

from egogen.errors import EgoGenError, command_parser, run_command
from egogen.layout import DATASETS
from mini.world.write import default_val_pairs, write_dataset


def main(argv: Sequence[str]) -> int:
    parser = command_parser(__doc__, prog="python -m mini")
    parser.add_argument("out", type=Path, help="dataset root to make (or to finish)")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs in total, val included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--val-pairs", type=int, help="pairs for val in total (default: a tenth)")
    parser.add_argument("--actions-per-clip", type=int, default=3, choices=(1, 2, 3, 4))
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    if args.pairs < 1:
        raise EgoGenError(f"--pairs {args.pairs}: expected at least 1")
    datasets = [name for name in DATASETS if name in args.datasets]
    val_pairs = args.val_pairs
    if val_pairs is None:
        val_pairs = default_val_pairs(args.pairs, len(datasets), args.actions_per_clip)
    request = {
        "seed": args.seed,
        "pairs": args.pairs,
        "val_pairs": val_pairs,
        "actions_per_clip": args.actions_per_clip,
        "datasets": datasets,
    }
    record = write_dataset(args.out, request, args.workers)
    for dataset, counts in record["pairs"].items():
        print(f"{dataset}: {counts['train']} train and {counts['val']} val pairs in {args.out}")
    return 0


if __name__ == "__main__":
    run_command(main)

"""Render first-person table scenes in the layout of the released dataset."""

from collections.abc import Sequence

from egogen import DATASETS, EgoGenError, read_parser, run_command
from mini import COMMANDS
from mini.world.write import default_val_pairs, write_dataset


def main(argv: Sequence[str]) -> int:
    choices, defaults = {"datasets": DATASETS}, {"datasets": list(DATASETS)}
    parser = read_parser(COMMANDS, "mini", __doc__, choices, **defaults)
    args = parser.parse_args(argv)
    if args.pairs < 1:
        raise EgoGenError(f"--pairs {args.pairs}: expected at least 1")
    args.datasets = [name for name in DATASETS if name in args.datasets]
    if args.val_pairs is None:
        datasets = len(args.datasets)
        args.val_pairs = default_val_pairs(args.pairs, datasets, args.actions_per_clip)
    names = ("seed", "pairs", "val_pairs", "actions_per_clip", "datasets")
    record = write_dataset(args.out, {name: getattr(args, name) for name in names}, args.workers)
    for dataset, counts in record["pairs"].items():
        print(f"{dataset}: {counts['train']} train and {counts['val']} val pairs in {args.out}")
    return 0


if __name__ == "__main__":
    run_command(main)

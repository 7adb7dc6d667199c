"""Add tuned adapters into the weights of their base model: a folder that describes images."""

from collections.abc import Sequence
from pathlib import Path

from egogen import EgoGenError, read_parser, run_command
from egogen.download.hub import local_path
from llava import COMMANDS


def main(argv: Sequence[str] | None = None) -> None:
    parser = read_parser(COMMANDS, "llava.train.merge_lora", __doc__)
    args = parser.parse_args(argv)
    if not Path(local_path(args.adapter)).is_dir():
        raise EgoGenError(f"{args.adapter}: no such folder, expected the adapter of a tuning")

    # Slow to import: bad arguments are reported first.
    import torch

    from llava.train.adapters import merge

    merge(args.adapter, args.out, base=args.base, dtype=getattr(torch, args.dtype))
    print(f"{args.out}: {args.adapter} merged")


if __name__ == "__main__":
    run_command(main)

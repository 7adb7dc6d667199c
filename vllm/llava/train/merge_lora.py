"""Add tuned adapters into the weights of their base model: a folder that describes images."""

from collections.abc import Sequence
from pathlib import Path

from egogen.errors import EgoGenError, command_parser, run_command

EXAMPLE = """example:
  python -m llava.train.merge_lora --adapter runs/vllm_lora/adapter --out runs/vllm_merged"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLE, "python -m llava.train.merge_lora")
    parser.add_argument("--adapter", required=True, help="folder `adapter` of a tuning with LoRA")
    parser.add_argument("--out", required=True, help="folder of the complete checkpoint to write")
    parser.add_argument("--base", help="the pretrained model (default: where it was when tuning)")
    parser.add_argument(
        "--dtype", default="float16", choices=("float32", "float16", "bfloat16"), help="of the out"
    )
    args = parser.parse_args(argv)
    if not Path(args.adapter).is_dir():
        raise EgoGenError(f"{args.adapter}: no such folder, expected the adapter of a tuning")

    # Slow to import: bad arguments are reported first.
    import torch

    from llava.train.adapters import merge

    merge(args.adapter, args.out, base=args.base, dtype=getattr(torch, args.dtype))
    print(f"{args.out}: {args.adapter} merged")


if __name__ == "__main__":
    run_command(main)

"""Convert a checkpoint of stage 1 between the released layout and Hugging Face's, both ways."""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "vllm")]

from egogen import read_parser, run_command  # noqa: E402
from llava import COMMANDS  # noqa: E402


def main(argv: Sequence[str] | None = None) -> None:
    args = read_parser(COMMANDS, "convert_checkpoint", __doc__).parse_args(argv)
    from llava.checkpoints.fields import read_fields

    read_fields(args.source)
    from llava.checkpoints.convert import convert  # slow to import: arguments are checked first

    files = convert(args.source, args.out, args.to, args.vision_tower)
    if files is None:
        print(f"{args.out}: converted before, nothing to do")
    else:
        size = sum(path.stat().st_size for path in files)
        print(f"{args.out}: {len(files)} weight files, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    run_command(main)

"""Convert a checkpoint of stage 1 between the released layout and Hugging Face's, both ways."""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "vllm")]

from egogen.errors import command_parser, run_command  # noqa: E402

EXAMPLE = """example:
  python vllm/scripts/convert_checkpoint.py runs/vllm runs/vllm-hf --to hub
  python vllm/scripts/convert_checkpoint.py runs/vllm-hf runs/vllm-llava --to llava
The folder given first may have any layout; its weights keep their bits."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("source", type=Path, help="checkpoint folder, any layout")
    add("out", type=Path, help="new folder")
    about = "llava: released layout; hub: what transformers and serving engines load"
    add("--to", required=True, choices=("llava", "hub"), help=about)
    add("--vision-tower", help="folder or hub name of the tower when the checkpoint lacks it")
    args = parser.parse_args(argv)
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

"""Merge the result files of all chunks; optionally write the action file that stage 2 reads."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from egogen.actions import DESCRIPTION_KEY  # noqa: E402
from egogen.atomic import write_json  # noqa: E402
from egogen.errors import EgoGenError, command_parser, run_command  # noqa: E402
from llava.describing import results  # noqa: E402

EXAMPLE = """example:
  python vllm/scripts/merge_inference_results.py runs/described/vllm/val \\
      --output runs/described/vllm/val.json --action-label data/ego4d_val.json \\
      --actions-output runs/described/ego4d_val.json"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("folder", type=Path, help="folder with <name>_1.json, <name>_2.json ...")
    add("--output", type=Path, required=True, help="the merged JSON")
    add("--action-label", type=Path, help="the action file: every entry must be described")
    add("--actions-output", type=Path, help="its copy with the descriptions, for stage 2")
    add("--key", default=DESCRIPTION_KEY, help="where they stand there (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.actions_output and not args.action_label:
        raise EgoGenError("--actions-output: needs --action-label, the file to be completed")
    files = results.chunk_files(args.folder)
    merged = results.merge_results(files)
    if args.action_label:
        results.check_complete(merged, args.action_label)
    if args.actions_output:
        whole = results.with_descriptions(args.action_label, merged, args.key)
        write_json(args.actions_output, whole)
    write_json(args.output, merged)
    count = sum(map(len, merged.values()))
    print(f"{args.output}: {count} entries from {len(files)} chunks")


if __name__ == "__main__":
    run_command(main)

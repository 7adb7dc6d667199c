"""Merge the result files of all chunks; optionally write the action file that stage 2 reads."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from egogen import DESCRIPTION_KEY, EgoGenError, read_parser, run_command, write_json  # noqa: E402
from llava import COMMANDS  # noqa: E402
from llava.describing import results  # noqa: E402


def main(argv: Sequence[str] | None = None) -> None:
    parser = read_parser(COMMANDS, "merge_inference_results", __doc__, key=DESCRIPTION_KEY)
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

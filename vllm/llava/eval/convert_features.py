"""Make a compact feature store from a released one, or the reverse."""

from collections.abc import Sequence

from egogen import floor_chunk, read_actions, read_parser, run_command
from egogen.features.store import LAYOUTS
from llava import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    parser = read_parser(COMMANDS, "llava.eval.convert_features", __doc__, {"to": LAYOUTS})
    args = parser.parse_args(argv)
    entries = floor_chunk(read_actions(args.action_label), args.num_chunks, args.chunk_idx)
    from llava.describing.feature_conversion import convert  # slow to import

    return convert(args, entries)


if __name__ == "__main__":
    run_command(main)

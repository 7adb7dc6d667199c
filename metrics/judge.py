"""Let a vision model judge frames without their targets; the same command goes on with it."""

import sys
from pathlib import Path

if not __package__:  # run as a script: see the package's docstring
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from egogen import EgoGenError, flags, run_command, served
from metrics import COMMANDS
from metrics.reporting.judged import judge


def main(argv: Sequence[str]) -> int:
    parser = flags.read_parser(COMMANDS, "judge", __doc__)
    flags.add_flags(parser, flags.COMMANDS, "server")
    args = parser.parse_args(argv)
    served.check_arguments(args, "limit")
    if not (args.base_url and args.model):
        raise EgoGenError("expected --base-url and --model, of a server that sees images")
    return judge(args)


if __name__ == "__main__":
    run_command(main)

"""A blind study with people, as in the paper: whose frame shows the action best?"""

import sys
from pathlib import Path

if not __package__:  # run as a script: see the package's docstring
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from egogen import add_flags, layout, read_command
from egogen.errors import command_parser, run_command
from metrics import COMMANDS
from metrics.reporting import study

WORK = {"make": study.make, "serve": study.serve, "count": study.count}


def main(argv: Sequence[str]) -> int:
    parser = command_parser(__doc__, read_command(COMMANDS, "study")["examples"])
    kinds = parser.add_subparsers(dest="what", required=True)
    choices = {"dataset": layout.DATASETS, "split": layout.SPLITS}
    for what in WORK:
        command = f"study.{what}"
        kind = kinds.add_parser(what, help=read_command(COMMANDS, command)["about"])
        add_flags(kind, COMMANDS, command, choices)
    options = parser.parse_args(argv)
    return WORK[options.what](options)


if __name__ == "__main__":
    run_command(main)

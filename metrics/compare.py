"""Compare two runs that were measured over the same ground truth: B - A, figure by figure."""

import sys
from pathlib import Path

if not __package__:  # run as a script: see the package's docstring
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from egogen import EgoGenError, read_parser, run_command, write_json
from metrics import COMMANDS
from metrics.reporting.runs import compare_runs, read_run

JSON_FILE = "compare.json"


def main(argv: Sequence[str]) -> int:
    options = read_parser(COMMANDS, "compare", __doc__).parse_args(argv)
    names = options.names or (None, None)
    versus = compare_runs(read_run(options.a, names[0]), read_run(options.b, names[1]))
    if versus.first.folder == versus.second.folder:
        raise EgoGenError(f"{versus.first.folder}: is both A and B, expected two runs")
    if versus.first.name == versus.second.name:
        versus.first.name, versus.second.name = (f"{versus.first.name} ({x})" for x in "AB")
    out = options.out or versus.second.folder.parent / f"compare_with_{versus.first.name}"

    from metrics.reporting.plots import text_table  # slow to import

    print(text_table(versus))
    write_json(out / JSON_FILE, versus.to_json())
    print(f"written: {out / JSON_FILE}")
    return 0


if __name__ == "__main__":
    run_command(main)

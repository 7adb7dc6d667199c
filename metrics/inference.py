"""Generate the action frames of one chunk of an action file."""

import sys
from pathlib import Path

if not __package__:  # run as a script: see the package's docstring
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from egogen import EXIT_INCOMPLETE, read_parser, run_command
from ldm.config import GenerateConfig, load_config
from ldm.split import open_generation
from metrics import COMMANDS


def main(argv: Sequence[str]) -> int:
    arguments = read_parser(COMMANDS, "inference", __doc__).parse_intermixed_args(argv)
    config = load_config(GenerateConfig, [arguments.config], arguments.overrides)
    config.loras += arguments.lora
    chunk = arguments.ckpt, arguments.n_chunk, arguments.chunk_idx
    open_generation(config, *chunk)

    # Slow to import: bad arguments and files are reported first.
    from egogen.devices import usable_device
    from ldm.generate import generate_chunk

    failures = generate_chunk(config, *chunk, usable_device(arguments.device))
    for failure in failures:
        print(f"not generated: {failure}", file=sys.stderr)
    return EXIT_INCOMPLETE if failures else 0


if __name__ == "__main__":
    run_command(main)

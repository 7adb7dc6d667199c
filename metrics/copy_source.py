"""Write the source frames as generated ones: the baseline that copies, which is to be beaten."""

import sys
from pathlib import Path

if not __package__:  # run as a script: see the package's docstring
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
from collections.abc import Sequence

from egogen import EgoGenError, inside, read_actions, read_parser, run_command
from egogen.atomic import atomic_path, write_bytes
from egogen.frames import read_rgb
from metrics import COMMANDS
from metrics.frame_pairs import SUFFIXES


def copy_sources(
    source_path: str | os.PathLike, edit_file: str | os.PathLike, out: str | os.PathLike
) -> int:
    """Write the source frame of every entry under its target's name below `out` -> their number.

    A frame whose suffix stays is copied byte by byte, another one is saved in the target's format.
    Raises EgoGenError for the first frame that cannot be read.
    """
    entries = read_actions(edit_file)
    for entry in entries:
        source, target = inside(source_path, entry.image_0), inside(out, entry.image_1)
        image = read_rgb(source)
        if source.suffix.lower() == target.suffix.lower():
            write_bytes(target, source.read_bytes())
        elif target.suffix.lower() not in SUFFIXES:
            where = f"{edit_file}: entry {entry.key}: image_1"
            raise EgoGenError(f"{where} {entry.image_1!r}: expected .jpg or .png")
        else:
            with atomic_path(target) as temporary:
                image.save(temporary, quality=95)
    return len(entries)


def main(argv: Sequence[str]) -> int:
    options = read_parser(COMMANDS, "copy_source", __doc__).parse_args(argv)
    written = copy_sources(options.source_path, options.edit_file, options.out)
    print(f"written: {written} frames, {options.out}")
    return 0


if __name__ == "__main__":
    run_command(main)

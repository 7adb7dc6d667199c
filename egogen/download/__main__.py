"""Fetch what the project releases: `python -m egogen.download GROUP [FOLDER]`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from egogen.download.group import MANIFEST, SOURCES, Item, choose, fetch_group, read_manifest
from egogen.errors import EXIT_INCOMPLETE, EgoGenError, run_command
from egogen.flags import COMMANDS, read_parser
from egogen.settings import load_settings


def main(argv: Sequence[str]) -> int:
    parser = read_parser(COMMANDS, "egogen.download", __doc__, {"source": SOURCES})
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    groups = read_manifest(args.manifest)
    if args.group not in groups:
        raise EgoGenError(f"{args.group}: no such group, expected one of {', '.join(groups)}")
    files = choose(groups[args.group]["files"], args.source, args.only)
    load_settings()
    folder = args.folder or Path(os.path.expandvars(groups[args.group]["folder"]))
    if args.verify:
        bad = [line for entry in files for line in Item(entry, folder).wrong(read=True)]
    else:
        bad = fetch_group(files, folder, args.dry_run)
    for line in bad:
        print(f"error: {line}")
    if not bad and not args.dry_run:
        print(f"{args.group}: {'verified' if args.verify else 'complete'} in {folder}")
    return EXIT_INCOMPLETE if bad else 0


if __name__ == "__main__":
    run_command(main)

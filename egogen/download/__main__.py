"""Fetch what the project releases: `python -m egogen.download GROUP [FOLDER]`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from egogen.download.group import Item, fetch_group
from egogen.download.manifest import MANIFEST, SOURCES, choose, read_manifest
from egogen.errors import EXIT_INCOMPLETE, EgoGenError, command_parser, run_command
from egogen.settings import load_settings

EXAMPLE = """examples:
  python -m egogen.download dataset /data/lego
  python -m egogen.download model_weights checkpoints --only ldm_ego4d --dry-run
  python -m egogen.download vllm_features /data/features --verify
The same command again continues what was stopped and skips what is finished. HF_TOKEN, HF_ENDPOINT
and HF_HUB_OFFLINE are those of the hub's own client."""


def main(argv: Sequence[str]) -> int:
    parser = command_parser(__doc__, EXAMPLE, "python -m egogen.download")
    parser.add_argument("group", help=", ".join(read_manifest(MANIFEST)))
    parser.add_argument("folder", nargs="?", type=Path, help="where it goes")
    parser.add_argument("--source", choices=SOURCES, default="hub", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these entries of the group")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--verify", action="store_true", help="read all files again, fetch nothing")
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

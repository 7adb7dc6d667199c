"""Fetch what the project releases: `python -m egogen.download GROUP [FOLDER]`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from egogen.download.group import choose, fetch_group, plan, verify
from egogen.download.manifest import read_manifest
from egogen.errors import EXIT_INCOMPLETE, EgoGenError, run_command
from egogen.settings import load_settings

EXAMPLE = """examples:
  python -m egogen.download dataset /data/lego
  python -m egogen.download model_weights checkpoints --only ldm_ego4d --dry-run
  python -m egogen.download vllm_features /data/features --verify
The same command again continues what was stopped and skips what is finished."""


def main(argv: Sequence[str]) -> int:
    manifest = read_manifest()
    parser = argparse.ArgumentParser(
        prog="python -m egogen.download",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("group", help=", ".join(manifest))
    parser.add_argument("folder", nargs="?", type=Path, help="where it goes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these files of the group")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--verify", action="store_true", help="read all files again, fetch nothing")
    parser.add_argument("--manifest", type=Path, help="another list of groups, names and links")
    args = parser.parse_args(argv)
    if args.manifest:
        manifest = read_manifest(args.manifest)
    if args.group not in manifest:
        raise EgoGenError(f"{args.group}: no such group, expected one of {', '.join(manifest)}")
    group = manifest[args.group]
    load_settings()
    folder = args.folder or Path(os.path.expandvars(group["folder"]))
    files = choose(args.group, group["files"], args.only)
    if args.dry_run:
        print("\n".join(plan(files, folder)))
        return 0
    bad = verify(files, folder) if args.verify else fetch_group(group, files, folder)
    for line in bad:
        print(f"error: {line}")
    if not bad:
        print(f"{args.group}: {'verified' if args.verify else 'complete'} in {folder}")
    return EXIT_INCOMPLETE if bad else 0


if __name__ == "__main__":
    run_command(main)

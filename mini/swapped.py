"""Inputs of frames in which a part of what stage 2 is told is another action's.

Who makes frames with one of them in place of the run's own sees what stage 2 listens to. An action
gets texts and text features of the next one of its clip: both start from the same frame. Image
features are of that frame alone, so they are those of the next clip's frame.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from egogen import EgoGenError, read_actions, read_parser, run_command, write_json
from egogen.features.store import INFO_FILE, feature_path
from mini import COMMANDS


def swap(actions: Path, stores: Mapping[str, Path], out: Path) -> None:
    """Write `out`/actions.json, and stores `out`/text and `out`/image of links to the files of
    `stores`, which have the released layout. EgoGenError names what is missing there.
    """
    inputs = {"actions.json": actions, **stores}
    if any((out / name).resolve() == path.resolve() for name, path in inputs.items()):
        raise EgoGenError(f"--out {out}: holds the inputs themselves, expected another folder")
    clips = [[*group] for _, group in groupby(read_actions(actions), lambda entry: entry.clip)]
    records = {out / name / INFO_FILE: store / INFO_FILE for name, store in stores.items()}
    links = {link: record for link, record in records.items() if record.is_file()}
    swapped: dict[str, dict] = {}
    for clip, other in zip(clips, [*clips[1:], clips[0]], strict=True):
        for own, following in zip(clip, [*clip[1:], clip[0]], strict=True):
            frames = {"image_0": own.image_0, "image_1": own.image_1}
            swapped.setdefault(own.clip, {})[own.action_id] = {**following.texts, **frames}
            for name, entry in (("text", following), ("image", other[0])):
                link = feature_path(out / name, own.image_0)
                links[link] = feature_path(stores[name], entry.image_0)
    if lost := [to for to in links.values() if not to.is_file()]:
        raise EgoGenError(f"{lost[0]}: no such file, expected the features that stage 1 wrote")
    for link, to in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(to, link.parent))  # a run's folder may be moved
    write_json(out / "actions.json", swapped)


def main(argv: Sequence[str]) -> None:
    args = read_parser(COMMANDS, "mini.swapped", __doc__).parse_args(argv)
    swap(args.actions, {"text": args.text, "image": args.image}, args.out)


if __name__ == "__main__":
    run_command(main)

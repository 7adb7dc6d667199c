"""Checkpoints of tuning that are whole or not there, and the folder of the result."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from egogen.atomic import read_json, write_json
from egogen.errors import EgoGenError
from llava.checkpoints.load import Loaded, save_tools
from llava.train.parallel import wait_for_all

WHOLE_FILE = "whole.json"  # written last into a checkpoint folder
SHARDED = ("zero1", "zero2", "zero3")  # each process keeps its own part of the optimizer


def flush(folder: Path) -> None:
    """Return when everything in `folder` is on the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def half_of(folder: str | os.PathLike) -> Path:
    """An empty folder inside `folder`, to be filled and then published there."""
    half = Path(folder) / ".half"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    return half


def publish(half: Path) -> None:
    """Move the files of `half` up into its folder, once all of them are on the disk."""
    flush(half)
    for path in sorted(half.iterdir()):
        os.replace(path, half.parent / path.name)
    half.rmdir()


def checkpoints(output: Path) -> dict[int, Path]:
    """Step -> checkpoint-<step> folder, whole or not, by rising step."""
    found = {
        int(match[1]): path
        for path in Path(output).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    }
    return dict(sorted(found.items()))


def newest_whole(output: Path, engine: str, processes: int) -> str | None:
    """The checkpoint with the highest step that was written to its end.

    Raises EgoGenError when it belongs to another engine, or to another number of processes where
    that matters.
    """
    whole = [path for path in checkpoints(output).values() if (path / WHOLE_FILE).exists()]
    if not whole:
        return None
    written = read_json(whole[-1] / WHOLE_FILE)
    by, on = written.get("engine", engine), written.get("processes", processes)
    if by != engine or (by in SHARDED and on != processes):
        raise EgoGenError(
            f"{whole[-1]}: written by {by} on {on} processes, found {engine} on {processes}; "
            "go on with those, or choose another --output_dir"
        )
    return str(whole[-1])


class WholeCheckpoints(TrainerCallback):
    """Completes every checkpoint with tokenizer and image processor, and marks it whole.

    Only then older ones are removed, so that there is always one to go on from.
    """

    def __init__(self, loaded: Loaded, kept: int | None, mark: dict[str, Any]):
        self.loaded, self.kept, self.mark = loaded, kept, mark

    def on_save(self, args, state, control, **_):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        wait_for_all()  # every process writes its part
        if not state.is_world_process_zero or not folder.is_dir():
            return
        save_tools(self.loaded, folder)
        flush(folder)
        write_json(folder / WHOLE_FILE, {"step": state.global_step, **self.mark})
        older = [path for path in checkpoints(args.output_dir).values() if path != folder]
        whole = [path for path in older if (path / WHOLE_FILE).exists()]
        gone = whole[: max(0, len(whole) + 1 - self.kept)] if self.kept else []
        for path in [*gone, *(path for path in older if path not in whole)]:
            (path / WHOLE_FILE).unlink(missing_ok=True)  # half removed is not whole
            shutil.rmtree(path, ignore_errors=True)

"""Checkpoints of tuning that are complete or do not count, stopping on signals, and the result.

`checkpoint-<step>/whole.json` is written last: a checkpoint without it was cut off while it was
saved, and is never continued from.
"""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

from accelerate.utils import wait_for_everyone
from transformers import TrainerCallback

from egogen.atomic import as_umask_says, read_object, write_json
from egogen.errors import EgoGenError
from egogen.jobs import SIGNALS, StoppedBySignal, requeue
from llava.checkpoints.hub_model import HubModel
from llava.checkpoints.load import Loaded
from llava.train.parallel import any_process, is_first

COMPLETE_FILE = "whole.json"  # written last into a checkpoint folder
SHARDED = ("zero1", "zero2", "zero3")  # each process keeps its own part of the optimizer


def flush(folder: Path) -> None:
    """Return when everything in `folder` is on the disk, for all whom the umask lets read it."""
    as_umask_says(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def staging_folder(folder: str | os.PathLike) -> Path:
    """An empty folder inside `folder`, whose files `publish` moves there when all are written."""
    staging = Path(folder) / ".half"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def publish(staging: Path) -> None:
    """Move the files of `staging` up into its folder, once all of them are on the disk."""
    flush(staging)
    for path in sorted(staging.iterdir()):
        os.replace(path, staging.parent / path.name)
    staging.rmdir()


def checkpoints(output: str | os.PathLike) -> list[Path]:
    """The folders checkpoint-<step>, complete or not, by rising step."""
    steps = {path: path.name.partition("-")[2] for path in Path(output).glob("checkpoint-*")}
    found = [path for path, step in steps.items() if step.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(steps[path]))


def newest_complete(output: Path, engine: str, processes: int) -> str | None:
    """The complete checkpoint with the highest step, None when there is none.

    Raises EgoGenError when it belongs to another engine, or to another number of processes where
    that matters.
    """
    complete = [path for path in checkpoints(output) if (path / COMPLETE_FILE).exists()]
    if not complete:
        return None
    written = read_object(complete[-1] / COMPLETE_FILE)
    by, on = written.get("engine", engine), written.get("processes", processes)
    if by != engine or (by in SHARDED and on != processes):
        found = f"written by {by} on {on} processes, found {engine} on {processes}"
        advice = "go on with those, or choose another --output_dir"
        raise EgoGenError(f"{complete[-1]}: {found}; {advice}")
    return str(complete[-1])


class CompleteCheckpoints(TrainerCallback):
    """Adds tokenizer and image processor to every checkpoint, and marks it as complete.

    Only then are older ones removed, down to `kept` (None: all stay), so that there is always one
    to continue from.
    """

    def __init__(self, loaded: Loaded | HubModel, kept: int | None, mark: dict[str, Any]):
        self.loaded, self.kept, self.mark = loaded, kept, mark

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        wait_for_everyone()  # every process writes its part
        if not state.is_world_process_zero or not folder.is_dir():
            return
        self.loaded.save_tools(folder)
        flush(folder)
        write_json(folder / COMPLETE_FILE, {"step": state.global_step, **self.mark})
        found = checkpoints(args.output_dir)
        complete = [path for path in found if (path / COMPLETE_FILE).exists()]
        for path in {*found} - {*complete[-(self.kept or 0) :]}:
            (path / COMPLETE_FILE).unlink(missing_ok=True)  # half removed is not complete
            shutil.rmtree(path, ignore_errors=True)


class StopOnSignal(TrainerCallback):
    """SIGUSR1 and SIGTERM end tuning after the optimizer step under way, with a checkpoint.

    All processes stop at the same step, whichever of them the signal has reached.
    """

    received: int | None = None
    stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.received = number

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        asked = any_process(self.received is not None, args.device)
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def raise_if_stopped(self, output: Path, step: int) -> None:
        """Raises StoppedBySignal where tuning did not come to its end; the checkpoint is written.

        After SIGUSR1, the warning before Slurm's time limit, the job is queued again.
        """
        if not self.stopped:
            return
        after = "the same command continues"
        if is_first() and self.received == signal.SIGUSR1:
            after = requeue() or after
        raise StoppedBySignal(f"{output}: step {step}: stopped by a signal; {after}")

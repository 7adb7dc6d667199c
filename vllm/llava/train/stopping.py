"""Tuning that is told to stop writes a checkpoint first, and under Slurm is queued again."""

from __future__ import annotations

import signal
from pathlib import Path

from transformers import TrainerCallback

from egogen.jobs import SIGNALS, StoppedBySignal, requeue
from llava.train.parallel import any_process, is_first


class StopOnSignal(TrainerCallback):
    """SIGUSR1 and SIGTERM end tuning after the optimizer step under way, with a checkpoint.

    All processes stop at the same step, whichever of them the signal has reached.
    """

    def __init__(self):
        self.received: int | None = None
        self.stopped = False
        self.before: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **_):
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self._note)

    def on_train_end(self, args, state, control, **_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        self.received = number

    def on_step_end(self, args, state, control, **_):
        asked = any_process(self.received is not None, args.device)
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def raise_if_stopped(self, output: Path, step: int) -> None:
        """Raises StoppedBySignal, after the checkpoint, where tuning did not come to its end."""
        if not self.stopped:
            return
        after = "the same command continues"
        if is_first() and self.received == signal.SIGUSR1:
            after = requeue() or after
        raise StoppedBySignal(f"{output}: step {step}: stopped by a signal; {after}")

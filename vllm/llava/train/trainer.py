"""transformers' Trainer with whole checkpoints, plain progress and the released learning rate."""

from __future__ import annotations

import math
import time
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from egogen.jobs import LOG_EVERY_SECONDS, Progress
from llava.checkpoints.load import Loaded
from llava.train.order import EpochOrder
from llava.train.parallel import processes
from llava.train.saving import WholeCheckpoints
from llava.train.stopping import StopOnSignal


def released_warmup(step: int, warmup_steps: int) -> float:
    """Factor of the rate in step 0, 1, ... under DeepSpeed 0.9.5's WarmupLR (logarithmic).

    The first step runs at the full rate and the second at 0, a slip of that version.
    """
    if step == 0:
        return 1.0
    return min(1.0, math.log(step) / math.log(max(2, warmup_steps)))


class StepProgress(TrainerCallback):
    """Samples per second and time left: a bar on a terminal, now and then a line in a log."""

    def __init__(self):
        self.progress: Progress | None = None
        self.last_line = time.monotonic()

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            samples = args.step_samples
            self.progress = Progress(
                state.max_steps * samples, "tune", "samples", done=state.global_step * samples
            )

    def on_step_end(self, args, state, control, **_):
        if self.progress is not None:
            self.progress.update(state.global_step * args.step_samples - self.progress.count)

    def on_log(self, args, state, control, logs=None, **_):
        if self.progress is None or "loss" not in (logs or {}):
            return
        told = f"step {state.global_step}, loss {logs['loss']:.4f}"
        if self.progress.bar is not None:
            self.progress.bar.set_postfix_str(told)
        elif time.monotonic() - self.last_line >= LOG_EVERY_SECONDS:
            self.last_line = time.monotonic()
            print(f"tune: {told}, rate {logs.get('learning_rate', 0):.2e}", flush=True)

    def on_train_end(self, args, state, control, **_):
        if self.progress is not None:
            self.progress.close()
            self.progress = None


class Tuner(Trainer):
    """Trainer for `Llava`. Data order and rate depend on the arguments and the seed alone."""

    def __init__(self, loaded: Loaded, model: Any, **options):
        super().__init__(model=model, **options)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(StepProgress())
        mark = {"engine": self.args.engine, "processes": processes()}
        self.add_callback(WholeCheckpoints(loaded, self.args.kept, mark))
        self.stop = StopOnSignal()
        self.add_callback(self.stop)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochOrder:
        data = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochOrder(len(data), self.args.step_samples, seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None):
        if self.args.lr_rule == "command" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda step: released_warmup(step, warmup)
        )
        return self.lr_scheduler

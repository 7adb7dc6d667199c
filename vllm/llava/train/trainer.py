"""transformers' Trainer with complete checkpoints, plain progress, and a data order of its own."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from egogen.jobs import LOG_EVERY_SECONDS, Progress
from llava.checkpoints.hub_model import HubModel
from llava.checkpoints.load import Loaded
from llava.train.parallel import processes
from llava.train.saving import CompleteCheckpoints, StopOnSignal


class EpochOrder(Sampler[int]):
    """A new order of `length` samples in every epoch, which depends on (seed, epoch) only.

    An epoch is filled up to a multiple of the global batch with its own first samples, so that step
    k learns the same samples whatever the number of processes, the batch of each, and the
    accumulation. Example: 5 samples in global batches of 4 are 8 draws an epoch, 3 samples twice.
    """

    def __init__(self, length: int, global_batch: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0
        self.total = math.ceil(length / global_batch) * global_batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        yield from (order[place % self.length] for place in range(self.total))


def released_warmup(step: int, warmup_steps: int) -> float:
    """Factor of the rate in step 0, 1, ... under DeepSpeed 0.9.5's WarmupLR (logarithmic).

    The first step runs at the full rate and the second at 0, a slip of that version.
    """
    if step == 0:
        return 1.0
    return min(1.0, math.log(step) / math.log(max(2, warmup_steps)))


class StepProgress(TrainerCallback):
    """Samples per second and time left: a bar on a terminal, now and then a line in a log."""

    progress: Progress | None = None
    since = 0, 0.0  # step and time of the last log

    def speed(self, args: Any, state: Any) -> float:
        """Samples per second since it was asked last."""
        (step, begun), now = self.since, time.monotonic()
        self.since = state.global_step, now
        return (state.global_step - step) * args.step_samples / max(now - begun, 1e-9)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last_line = time.monotonic()
        self.since = state.global_step, self.last_line
        if state.is_world_process_zero:
            samples = args.step_samples
            whole, done = state.max_steps * samples, state.global_step * samples
            self.progress = Progress(whole, "tune", "samples", done)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None:
            self.progress.update(state.global_step * args.step_samples - self.progress.count)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.progress is None or "loss" not in (logs or {}):
            return
        line = f"step {state.global_step}, loss {logs['loss']:.4f}"
        if self.progress.bar is not None:
            self.progress.bar.set_postfix_str(line)
        elif time.monotonic() - self.last_line >= LOG_EVERY_SECONDS:
            self.last_line = time.monotonic()
            print(f"tune: {line}, rate {logs.get('learning_rate', 0):.2e}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None:
            self.progress.close()


class Tuner(Trainer):
    """Trainer of stage 1. Data order and learning rate depend on arguments and seed only."""

    lr_scheduler: Any
    optimizer: Any

    def __init__(self, loaded: Loaded | HubModel, model: Any, **options: Any):
        super().__init__(model=model, **options)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        mark = {"engine": self.args.engine, "processes": processes()}
        self.shown, self.stop = StepProgress(), StopOnSignal()
        for callback in (self.shown, CompleteCheckpoints(loaded, self.args.kept, mark), self.stop):
            self.add_callback(callback)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Rate and loss go to the log with the speed, under stage 2's name for it."""
        if "loss" in logs:
            logs = {**logs, "samples_per_s": self.shown.speed(self.args, self.state)}
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        data = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochOrder(len(data), self.args.step_samples, seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """transformers' schedule, or with `--lr_rule released` that of the published runs."""
        if self.args.lr_rule == "command" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda step: released_warmup(step, warmup)
        )
        return self.lr_scheduler

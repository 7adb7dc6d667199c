"""transformers' Trainer with whole checkpoints, plain progress and the released learning rate."""

from __future__ import annotations

import math
from pathlib import Path

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from egogen.atomic import write_json
from egogen.progress import Progress
from llava.checkpoint import Loaded, save_tools

WHOLE_FILE = "whole.json"  # written last into a checkpoint folder


def newest_whole_checkpoint(output: Path) -> str | None:
    """The checkpoint-<step> folder with the highest step that was written to its end."""
    found = {
        int(path.parent.name.rpartition("-")[2]): path.parent
        for path in Path(output).glob(f"checkpoint-*/{WHOLE_FILE}")
    }
    return str(found[max(found)]) if found else None


def released_warmup(step: int, warmup_steps: int) -> float:
    """Factor of the rate in step 0, 1, ... under DeepSpeed 0.9.5's WarmupLR (logarithmic).

    The first step runs at the full rate and the second at 0, a slip of that version.
    """
    if step == 0:
        return 1.0
    return min(1.0, math.log(step) / math.log(max(2, warmup_steps)))


class WholeCheckpoints(TrainerCallback):
    """Completes every checkpoint folder with tokenizer and image processor, then marks it whole."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded

    def on_save(self, args, state, control, **_):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            save_tools(self.loaded, folder)
            write_json(folder / WHOLE_FILE, {"step": state.global_step})


class StepProgress(TrainerCallback):
    """A bar on a terminal, a line with rate, time left and loss now and then in a log."""

    def __init__(self):
        self.progress: Progress | None = None

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            self.progress = Progress(state.max_steps, "tune", "steps", done=state.global_step)

    def on_step_end(self, args, state, control, **_):
        if self.progress is not None:
            self.progress.update(state.global_step - self.progress.count)

    def on_train_end(self, args, state, control, **_):
        if self.progress is not None:
            self.progress.close()
            self.progress = None


class Tuner(Trainer):
    """Trainer for `Llava`. Data order and rate depend on the arguments and the seed alone."""

    def __init__(self, loaded: Loaded, **options):
        super().__init__(model=loaded.model, **options)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(StepProgress())
        self.add_callback(WholeCheckpoints(loaded))

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None):
        if self.args.lr_rule == "command" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda step: released_warmup(step, warmup)
        )
        return self.lr_scheduler

"""When a training run's checkpoints are written, how many are kept, and what signals do."""

import os
import shutil
import signal
from pathlib import Path

import pytorch_lightning as pl

from egogen import EgoGenError, atomic_path
from egogen.jobs import SIGNALS, StoppedBySignal, requeue
from ldm.model import FROZEN_PARTS

LAST = "last.ckpt"


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether the epoch ends with this batch, and its validation comes (or came) before its end."""
    every = trainer.check_val_every_n_epoch or 1
    return (
        trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        and trainer.enable_validation
        and (trainer.current_epoch + 1) % every == 0
    )


class Checkpoints(pl.Callback):
    """checkpoints/last.ckpt every `every` optimizer steps and at the end, written atomically.

    `keep_every` > 0 also keeps a copy under its step every that many steps, the newest
    `keep_at_most` (0: all) of them. Where a validation follows a step, the file is written after
    it, so that no kill can make a run miss one. The position in the training that is saved is
    always the end of a micro-batch: Lightning resumes exactly from there, but not from elsewhere.

    SIGUSR1 (which Slurm is asked to send before the time limit) and SIGTERM end the run after the
    optimizer step under way and the validation that follows it, with a checkpoint; under Slurm,
    SIGUSR1 also requeues the job. Lightning's own requeueing is not used: its file is not written
    atomically, and would later be preferred to a newer last.ckpt.
    """

    def __init__(self, folder: Path, every: int, keep_every: int = 0, keep_at_most: int = 3):
        self.folder, self.every = folder, every
        self.keep_every, self.keep_at_most = keep_every, keep_at_most
        self.saved, self.step, self.place = -1, 0, None
        self.received: int | None = None  # a signal

    def on_train_start(self, trainer: pl.Trainer, module) -> None:
        self.saved = self.step = trainer.global_step
        for number in SIGNALS:  # Lightning puts back what was there before the run
            signal.signal(number, self._note)
        if trainer.is_global_zero:
            copies = 2 + (self.keep_at_most if self.keep_every else 0)  # last.ckpt, and its next
            check_space(self.folder, copies, checkpoint_bytes(module))

    def _note(self, number: int, _) -> None:
        self.received = number

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        self.place = trainer.fit_loop.state_dict()
        if not validation_follows(trainer):
            self.end_step(trainer)

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        checkpoint["loops"]["fit_loop"] = self.place

    def on_train_epoch_end(self, trainer: pl.Trainer, *_) -> None:
        if validation_follows(trainer):
            self.end_step(trainer)

    def on_train_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step != self.saved:
            self.save(trainer)

    def end_step(self, trainer: pl.Trainer) -> None:
        """Save where that is due, stop where that was asked for."""
        step = trainer.global_step
        due = step % self.every == 0 or (self.keep_every and step % self.keep_every == 0)
        if due and step != self.saved:
            self.save(trainer)
        self.stop_if_asked(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Called on every rank; the first one writes."""
        path, step = self.folder / LAST, trainer.global_step
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path)  # takes part in gathering, writes nothing
        else:
            trainer.lightning_module.write_adapters(self.folder)  # never older than last.ckpt
            with atomic_path(path) as temporary:
                trainer.save_checkpoint(temporary)
            if self.keep_every and step % self.keep_every == 0:
                kept = self.folder / f"step_{step:08d}.ckpt"
                kept.unlink(missing_ok=True)
                os.link(path, kept)  # last.ckpt is replaced, never written into
                for old in sorted(self.folder.glob("step_*.ckpt"))[: -self.keep_at_most]:
                    old.unlink()
        self.saved = step

    def stop_if_asked(self, trainer: pl.Trainer) -> None:
        """Where an optimizer step has ended; the ranks agree, whichever the signal has reached."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        if self.saved != self.step:
            self.save(trainer)
        after = "the same command continues the run"
        if trainer.is_global_zero and self.received == signal.SIGUSR1:
            after = requeue() or after
        raise StoppedBySignal(
            f"{self.folder / LAST}: step {self.step}: stopped by a signal; {after}"
        )


def checkpoint_bytes(module: pl.LightningModule) -> int:
    """Size of a checkpoint of training: weights, EMA, and the two moments of AdamW."""
    trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    whole = [*module.parameters(), *module._frozen.parameters()]
    return sum(p.nbytes for p in whole) + trained * (2 if module.ema is None else 3)


def memory_line(module: pl.LightningModule) -> str:
    """What learns of the networks on the device, and their memory in float32, without activations:
    the weights and, of what learns, gradient, both moments of AdamW, and EMA.
    """
    named, rank, each = [*module.model.named_parameters()], module.lora.rank, 3 + bool(module.ema)
    whole = sum(p.numel() for _, p in named)
    learns = sum(p.numel() for _, p in named if p.requires_grad)
    frozen = sum(p.numel() for name, p in named if name.startswith(FROZEN_PARTS))
    takes, full = whole + each * learns, whole - learns + each * (whole - learns - frozen)
    line = f"train: {learns / 1e6:.4g} M of {whole / 1e6:.4g} M parameters; weights, gradients, "
    line += f"AdamW and EMA {takes * 4e-9:.3g} GB"
    note = f"full training {full * 4e-9:.3g} GB"
    return f"{line} (adapters of rank {rank}; {note})" if rank else line


def check_space(folder: Path, copies: int, size: int) -> None:
    """Raises EgoGenError unless `folder` can hold `copies` checkpoints, those in it included."""
    there = sum(path.stat().st_size for path in folder.glob("*.ckpt"))
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    if free + there < copies * size:
        raise EgoGenError(
            f"{folder}: No space left on device for {copies} checkpoints of {size / 1e9:.3g} GB: "
            f"{free / 1e9:.3g} GB are free; expected room for them before training begins "
            "(lightning.keep_every and lightning.keep_at_most say how many are kept)"
        )

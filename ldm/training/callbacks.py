"""What happens beside the training steps: the EMA, the log, sample images."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image, ImageOps
from pytorch_lightning.loggers import TensorBoardLogger
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from egogen import EgoGenError, Progress
from egogen.atomic import atomic_path, parse_json, write_text
from egogen.frames import read_rgb
from ldm.generate import make_frames
from ldm.images import to_image
from ldm.schema import TrainConfig, height_width
from ldm.split import Split

KEPT = {"loss": "losses", "loss_vlb": "loss_vlb"}  # in checkpoints


class EMAUpdate(pl.Callback):
    """Updates the EMA after each optimizer step (`every_micro_batch`: after each micro-batch, as in
    the released code). Must be the first of the callbacks: the others see or save the EMA.
    """

    def __init__(self, every_micro_batch: bool):
        self.every_micro_batch, self.steps_seen = every_micro_batch, 0

    def on_train_start(self, trainer: pl.Trainer, *_) -> None:
        self.steps_seen = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module, *_) -> None:
        stepped = trainer.global_step != self.steps_seen
        self.steps_seen = trainer.global_step
        if module.ema is not None and (stepped or self.every_micro_batch):
            module.ema.update()


class TrainingLog(pl.Callback):
    """metrics.jsonl (one object a line, with "step"), the same values in TensorBoard or W&B, and
    progress with rate and time left. Steps are optimizer steps.
    """

    def __init__(self, folder: Path, every: int):
        self.path, self.every = folder / "metrics.jsonl", every
        self.total, self.batch = 0, 1  # micro-batches of the complete run; samples of each
        self.progress: Progress | None = None
        self.losses: dict[str, list[torch.Tensor]] = {"loss": [], "loss_vlb": []}
        self.step, self.since = 0, (0, 0.0)  # (samples, time) of the last line

    def on_train_start(self, trainer: pl.Trainer, *_) -> None:
        """A resumed run takes back what was logged after its checkpoint."""
        if not trainer.is_global_zero:
            return
        kept = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            try:
                record = parse_json(line, str(self.path), finite=False)
            except EgoGenError:  # a line that a killed run left unfinished
                continue
            if record["step"] <= trainer.global_step:
                kept.append(f"{line.decode()}\n")
        write_text(self.path, "".join(kept))
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed * self.batch
        self.progress = Progress(self.total * self.batch, "train", "samples", done)
        self.step, self.since = trainer.global_step, (done, time.monotonic())

    def on_train_batch_end(self, trainer: pl.Trainer, module, *_) -> None:
        if self.progress is None:
            return
        for name, values in self.losses.items():
            if name in trainer.callback_metrics:
                values.append(trainer.callback_metrics[name])
        self.progress.update(self.batch)
        if trainer.global_step != self.step and trainer.global_step % self.every == 0:
            (samples, begun), now = self.since, time.monotonic()
            self.since = self.progress.count, now
            record = {"step": trainer.global_step}
            for name, values in self.losses.items():
                if values:
                    record[name] = torch.stack(values).mean().item()
                    values.clear()
            record["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
            record["samples_per_s"] = (self.progress.count - samples) / max(now - begun, 1e-9)
            self._write(record, trainer)
        self.step = trainer.global_step

    def state_dict(self) -> dict[str, list[float]]:
        """Losses since the last line: a resumed run's next line is an undisturbed one's."""
        return {KEPT[name]: [x.item() for x in values] for name, values in self.losses.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        for name, key in KEPT.items():
            self.losses[name] = [torch.tensor(x) for x in state.get(key, [])]

    def on_validation_end(self, trainer: pl.Trainer, *_) -> None:
        found = trainer.callback_metrics
        values = {n: found[n].item() for n in ("val_loss", "val_loss_vlb") if n in found}
        if self.progress is not None and values:
            self._write({"step": trainer.global_step, **values}, trainer)

    def on_train_end(self, *_) -> None:
        if self.progress is not None:
            self.progress.close()

    def _write(self, record: dict[str, Any], trainer: pl.Trainer) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        values = {name: value for name, value in record.items() if name != "step"}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=record["step"])


class SampleImages(pl.Callback):
    """samples/step_<n>.png: source, generated frame and target of the first validation entries.

    Generated with the EMA and the configured sampler, now and then and at the end.
    """

    def __init__(self, folder: Path, split: Split, config: TrainConfig):
        shown, self.folder, self.split = config.lightning.image_logger, folder, split
        self.every, self.items = shown.batch_frequency, split.items[: shown.max_images]
        self.inference = replace(config.inference, batch_size=1)  # nothing is padded
        self.drawn = -1

    def on_train_start(self, trainer: pl.Trainer, *_) -> None:
        self.drawn = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module, *_) -> None:
        if trainer.global_step % self.every == 0 and trainer.global_step != self.drawn:
            self.draw(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module) -> None:
        if trainer.global_step != self.drawn:
            self.draw(trainer, module)

    def draw(self, trainer: pl.Trainer, module) -> None:
        self.drawn = step = trainer.global_step
        if not trainer.is_global_zero or not self.items:
            return
        inference, places = self.inference, dict.fromkeys(self.items, 0)
        scales = inference.scales_img[0], inference.scales_txt[0]
        with module.encoders(), module.ema_weights():
            made, failures = make_frames(module.model, self.split, inference, None, places, scales)
        rows, height = [], inference.height or height_width(self.split.data.res)[0]
        for item, x in made.items():
            try:
                source, target = read_rgb(item.source), read_rgb(item.target)
            except EgoGenError as error:  # training that reads a cache never looks at the frames
                failures.append(f"{item.entry.key}: {error}")
                continue
            frame = to_image(x, source.size, height, inference.picture)
            rows.append((source, frame, target))
        for failure in failures:
            print(f"no sample image: entry {failure}", file=sys.stderr)
        if not rows:
            return
        sheet = contact_sheet(rows, height)
        with atomic_path(self.folder / f"step_{step:06d}.png") as temporary:
            sheet.save(temporary)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", pil_to_tensor(sheet), step)
            else:
                logger.log_image("samples", [sheet], step=step)


def contact_sheet(rows: Sequence[Sequence[Image.Image]], height: int) -> Image.Image:
    """Images of a row side by side, all `height` tall and in columns of equal width, thin gaps."""
    width = max(round(image.width / image.height * height) for row in rows for image in row)
    images = [ImageOps.pad(p, (width, height), color="white") for row in rows for p in row]
    gap = max(2, height // 32)
    grid = make_grid([pil_to_tensor(p) for p in images], len(rows[0]), gap, pad_value=255)
    return to_pil_image(grid[:, gap:-gap, gap:-gap])

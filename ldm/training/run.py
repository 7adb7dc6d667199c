"""Putting a training run together: data, model, Lightning's Trainer, and the run's folder.

logs/<name>/   config.yaml, made_by.json (the seed), checkpoints/last.ckpt, metrics.jsonl, samples/,
               finished.json, events (and wandb_id, where the log goes to W&B)
"""

import inspect
import logging
import secrets
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from egogen import EgoGenError, check_provenance, lock, read_json, write_json, write_text
from egogen.errors import need_package
from ldm.checkpoints.layouts import is_own
from ldm.checkpoints.load import read_weights
from ldm.config import load_config, to_yaml, unknown_key
from ldm.data import TrainingPairs
from ldm.file_layout import file_values
from ldm.model import LegoModel
from ldm.schema import DataParams, LightningConfig, TrainConfig
from ldm.split import Split, open_training
from ldm.training.callbacks import EMAUpdate, SampleImages, TrainingLog
from ldm.training.cluster import cluster_environment, device_options
from ldm.training.distill import begin
from ldm.training.encoder_cache import EncoderCache
from ldm.training.module import LegoTraining
from ldm.training.order import EpochBatches, ResumableLoader, ValidationBatches
from ldm.training.saving import LAST, Checkpoints, memory_line

RECORD_FILE = "made_by.json"  # beside config.yaml, which does not hold the seed
# What may differ when a run is continued: it decides how long and how, not what comes out.
MAY_CHANGE = ("lightning", "inference", "data.params.num_workers", "data.params.cache_path")


def build_loaders(
    trainer: pl.Trainer, train: TrainingPairs, val: TrainingPairs, params: DataParams, seed: int
) -> tuple[DataLoader, DataLoader]:
    """Loaders of both splits, in an order that a resume continues exactly."""
    options: dict[str, Any] = {"num_workers": params.num_workers}
    options["pin_memory"] = torch.cuda.is_available()
    if params.num_workers:
        options |= {"persistent_workers": True, "multiprocessing_context": "spawn"}
    size, place = params.batch_size, (trainer.global_rank, trainer.world_size)
    batches = EpochBatches(len(train), size, seed, *place)
    loader = ResumableLoader(train, batch_sampler=batches, **options)
    loop = trainer.fit_loop
    done = loop.epoch_loop.batch_progress.current  # micro-batches of the epoch
    loader.position = lambda: (loop.epoch_progress.current.processed, done.processed)
    order = ValidationBatches(len(val), size, lambda: trainer.current_epoch, *place)
    return loader, DataLoader(val, batch_sampler=order, **options)


def is_finished(config: TrainConfig, folder: Path, seed: int, resume: bool) -> bool:
    """Whether `folder` holds a finished run of this config, seed and length.

    Raises EgoGenError when it holds a checkpoint made with others, unless `resume` says to go on.
    """
    path = folder / "config.yaml"
    if path.exists() and (folder / "checkpoints" / LAST).exists() and not resume:
        before, now = (file_values(c) for c in (load_config(TrainConfig, [str(path)]), config))
        changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
        changed = [key for key in changed if not key.startswith(MAY_CHANGE)]
        if changed:
            raise EgoGenError(
                f"{path}: this run was begun with other values of {', '.join(changed[:5])}; choose "
                "another --name, or continue with the new values by --resume"
            )
        check_provenance(folder / RECORD_FILE, {"seed": seed})
    finished = folder / "finished.json"
    return finished.exists() and read_json(finished)["asked"] == asked_length(config.lightning)


def asked_length(lightning: LightningConfig) -> dict[str, Any]:
    return {name: lightning.trainer.get(name) for name in ("max_steps", "max_epochs")}


def build_data(
    splits: Mapping[str, Split], model: LegoModel, seed: int, cache_path: str | None, fixed: bool
) -> tuple[TrainingPairs, ...]:
    """Pairs of both splits; `fixed`: validation draws are the same every time."""
    pairs = []
    for part, split in splits.items():
        cache = EncoderCache(Path(cache_path) / part, split, model) if cache_path else None
        shape, drawn_once = model.latent_shape(split.data.res), part == "validation" and fixed
        rest = model.config.timesteps, shape, seed, cache, drawn_once
        pairs.append(TrainingPairs(split, *rest))
    return tuple(pairs)


def build_logger(kind: str, folder: Path) -> Any:
    """TensorBoard, W&B (a resumed run goes on in the same W&B run), or False."""
    if kind == "none":
        return False
    if kind == "tensorboard":
        return pl.loggers.TensorBoardLogger(folder.parent, name=folder.name, version="")
    need_package("wandb", "config: lightning.logger=wandb")
    path = folder / "wandb_id"
    if rank_zero_only.rank == 0 and not path.exists():
        write_text(path, secrets.token_hex(4))
    identity = path.read_text() if path.exists() else None
    return pl.loggers.WandbLogger(name=folder.name, save_dir=folder, id=identity, resume="allow")


def log_settings(logger: Any, settings: Mapping[str, Any]) -> None:
    """Where TensorBoard (its tab HPARAMS) and W&B look for them. Lightning would make up a metric
    to go with them in TensorBoard.
    """
    if not isinstance(logger, pl.loggers.TensorBoardLogger):
        logger.log_hyperparams(settings)
        return
    from torch.utils.tensorboard.summary import hparams

    plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings.items()}
    for part in hparams(plain, {"loss": 0, "val_loss": 0}):  # of these the names alone are used
        logger.experiment.file_writer.add_summary(part)


def build_trainer(lightning: LightningConfig, folder: Path, gpus: str | None, callbacks: list):
    """Lightning's Trainer from `lightning.trainer`; `gpus` as in "0,1,2", None for the CPU."""
    options = dict(lightning.trainer)
    known = list(inspect.signature(pl.Trainer.__init__).parameters)
    for key in options:
        if key not in known:
            raise unknown_key("config", "lightning.trainer.", key, known)
    options |= device_options(gpus)
    devices, nodes = options.setdefault("devices", 1), options.get("num_nodes", 1)
    count = len(devices) if isinstance(devices, list) else devices
    if count != 1 or nodes != 1:
        options.setdefault("strategy", "ddp")
    try:
        return pl.Trainer(
            **options,
            plugins=cluster_environment(count, nodes),
            callbacks=callbacks,
            logger=build_logger(lightning.logger, folder),
            default_root_dir=folder,
            log_every_n_steps=lightning.log_every,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (TypeError, ValueError, RuntimeError) as error:  # the latter two: devices and Slurm
        raise EgoGenError(f"config: lightning.trainer: {error}") from None


def micro_batches(options: dict[str, Any], batch_size: int, samples: int, world: int) -> int:
    """Micro-batches of the complete run on each rank, from the Trainer's `options`."""
    epoch = max(1, samples // (batch_size * world))
    accumulated = options.get("accumulate_grad_batches", 1)
    epochs, steps = options.get("max_epochs"), options.get("max_steps", -1)
    if epochs is None or epochs < 0:
        epochs = float("inf") if steps > 0 else 1000  # Lightning's own default
    limit = epoch * epochs
    if steps > 0:
        full, rest = divmod(steps, -(-epoch // accumulated))
        limit = min(limit, epoch * full + accumulated * rest)
    return int(limit)


def train(
    config: TrainConfig, folder: Path, gpus: str | None = None, seed: int = 23, resume: bool = False
) -> None:
    """Train, or continue, the run in `folder`. Nothing is done when it is finished."""
    if is_finished(config, folder, seed, resume) and not resume:
        print(f"{folder}: training is finished, nothing to do")
        return
    splits = open_training(config)
    _quiet()
    pl.seed_everything(seed, verbose=False)
    model = LegoModel(config.model)
    teacher = begin(model)
    settings, cache_path = config.lightning, config.data.cache_path
    fixed = settings.validation_draws == "fixed"
    train_pairs, val_pairs = build_data(splits, model, seed, cache_path, fixed)
    torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = settings.tf32
    module = LegoTraining(model, config.optimizer, settings, seed, bool(cache_path), teacher)
    log = TrainingLog(folder, settings.log_every)
    often = settings.checkpoint_every, settings.keep_every, settings.keep_at_most
    callbacks = [  # in this order: a checkpoint is written when the rest of its step is done
        EMAUpdate(config.model.ema_every_micro_batch),
        log,
        SampleImages(folder / "samples", splits["validation"], config),
        Checkpoints(folder / "checkpoints", *often),
    ]
    trainer = build_trainer(settings, folder, gpus, callbacks)
    each, world, first = config.data.batch_size, trainer.world_size, rank_zero_only.rank == 0
    log.total = micro_batches(settings.trainer, each, len(train_pairs), world)
    log.batch = each * world
    if first:
        accumulated = settings.trainer.get("accumulate_grad_batches", 1)
        print(
            f"train: {len(train_pairs)} pairs; {each} a batch x {world} processes x {accumulated} "
            f"accumulated = {each * world * accumulated} an optimizer step\n{memory_line(module)}",
            file=sys.stderr,
        )
    loaders = build_loaders(trainer, train_pairs, val_pairs, config.data, seed)
    with lock(folder / ".lock", "training", needed=first), workers_errors_in_one_line():
        if first:
            (folder / "finished.json").unlink(missing_ok=True)  # a longer run is being asked for
            write_text(folder / "config.yaml", to_yaml(config))
            write_json(folder / RECORD_FILE, {"seed": seed})
            for logger in trainer.loggers:
                log_settings(logger, file_values(config))
        ckpt = folder / "checkpoints" / LAST
        if (begun := ckpt.exists()) and not is_own(read_weights(ckpt)):
            raise EgoGenError(f"{ckpt}: not a checkpoint of stage 2's training")
        how: dict[str, Any] = {"ckpt_path": ckpt, "weights_only": True} if begun else {}
        trainer.fit(module, *loaders, **how)
        if trainer.interrupted:
            raise KeyboardInterrupt
        if trainer.is_global_zero:
            record = {"steps": trainer.global_step, "asked": asked_length(config.lightning)}
            write_json(folder / "finished.json", record)
            print(f"{ckpt}: trained for {trainer.global_step} steps")


@contextmanager
def workers_errors_in_one_line() -> Iterator[None]:
    """An error of a loader's worker arrives with its traceback as text: its message is kept."""
    try:
        yield
    except EgoGenError as error:
        kind = f"{EgoGenError.__module__}.{EgoGenError.__name__}: "
        raise type(error)(str(error).rpartition(kind)[2].strip()) from error


def _quiet() -> None:
    """Lightning's advertisements and advice that does not apply here."""
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    words = (
        "does not have many workers|in eval mode at the start of training|treespec, LeafSpec"
        "|`srun` command is available|exists and is not empty"
        "|number of training batches.*smaller than the logging"
        "|lr_scheduler.step.*before.*optimizer.step"
    )
    warnings.filterwarnings("ignore", f".*({words}).*")

"""Putting a training run together: data, model, Lightning's Trainer, and the run's folder.

logs/<name>/   config.yaml, checkpoints/last.ckpt, metrics.jsonl, samples/, finished.json, events
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from egogen import EgoGenError
from egogen.atomic import read_json, write_json, write_text
from ldm.architecture import downsampling_factor
from ldm.cache import EncoderCache
from ldm.callbacks import LAST, AverageUpdate, Checkpoints, SamplePictures, TrainingLog
from ldm.checkpoint import is_own, load_start, read_weights
from ldm.data import TrainingPairs, locate_entries
from ldm.model import LegoModel
from ldm.order import EpochBatches, ResumableLoader
from ldm.training import LegoTraining

# What may differ when a run is continued: it decides how long and how, not what comes out.
MAY_CHANGE = ("lightning", "inference", "data.params.num_workers", "data.params.cache_path")


class PairData(pl.LightningDataModule):
    """Loaders of both splits, in an order that a resume continues exactly."""

    def __init__(self, train: TrainingPairs, val: TrainingPairs, config: DictConfig, seed: int):
        super().__init__()
        self.train, self.val, self.seed = train, val, seed
        params = config.data.params
        self.batch_size = params.batch_size
        self.options = {"num_workers": params.num_workers, "pin_memory": torch.cuda.is_available()}
        if params.num_workers:
            self.options |= {"persistent_workers": True, "multiprocessing_context": "spawn"}

    def position(self) -> tuple[int, int]:
        """(epoch, micro-batches of it that are behind us), of the running fit loop."""
        loop = self.trainer.fit_loop
        return (
            loop.epoch_progress.current.processed,
            loop.epoch_loop.batch_progress.current.processed,
        )

    def train_dataloader(self) -> ResumableLoader:
        place = self.trainer.global_rank, self.trainer.world_size
        batches = EpochBatches(len(self.train), self.batch_size, self.seed, *place)
        return ResumableLoader(self.train, batches, self.position, **self.options)

    def val_dataloader(self) -> DataLoader:
        """Entries dealt out to the ranks, the same number to each: what is left over is left out,
        and entries fewer than ranks go to all of them."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        even = len(self.val) // world * world
        indices = range(even)[rank::world] if even else range(len(self.val))
        addresses = [(0, index) for index in indices]
        first = range(0, len(addresses), self.batch_size)
        batches = [addresses[start : start + self.batch_size] for start in first]
        return DataLoader(self.val, batch_sampler=batches, **self.options)


def run_folder(config: DictConfig, folder: Path, resume: bool) -> bool:
    """Check the run's folder; -> whether it holds a finished run of this config and length.

    Raises EgoGenError when the folder holds a checkpoint made with another config, unless `resume`
    says to go on.
    """
    path = folder / "config.yaml"
    if path.exists() and (folder / "checkpoints" / LAST).exists() and not resume:
        known = OmegaConf.load(path)
        changed = _differences(known, config)
        if changed:
            raise EgoGenError(
                f"{path}: this run was begun with other values of {', '.join(changed[:5])}; choose "
                "another --name, or continue with the new values by --resume"
            )
    finished = folder / "finished.json"
    return finished.exists() and read_json(finished)["asked"] == asked_length(config)


def asked_length(config: DictConfig) -> dict[str, Any]:
    return {name: config.lightning.trainer.get(name) for name in ("max_steps", "max_epochs")}


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _differences(known: DictConfig, config: DictConfig) -> list[str]:
    pair = [_flat(OmegaConf.to_container(c, resolve=True)) for c in (known, config)]
    keys = sorted(pair[0].keys() | pair[1].keys())
    return [
        key
        for key in keys
        if pair[0].get(key) != pair[1].get(key) and not key.startswith(MAY_CHANGE)
    ]


def build_data(config: DictConfig, model: LegoModel, seed: int) -> tuple[TrainingPairs, ...]:
    params, cache_path = config.model.params, config.data.params.cache_path
    pairs = []
    for part in ("train", "validation"):
        data = config.data.params[part].params
        side = data.res // downsampling_factor(params)
        cache = None
        if cache_path:
            cache = EncoderCache(Path(cache_path) / part, locate_entries(data), data, model)
        pairs.append(
            TrainingPairs(
                data,
                params,
                latent_shape=(params.channels, side, side),
                seed=seed,
                cache=cache,
                fixed=part == "validation",
            )
        )
    return tuple(pairs)


def build_logger(config: DictConfig, folder: Path) -> Any:
    kind = config.lightning.logger
    if kind == "wandb":
        return pl.loggers.WandbLogger(name=folder.name, save_dir=folder, resume="allow")
    if kind == "none":
        return False
    return pl.loggers.TensorBoardLogger(folder.parent, name=folder.name, version="")


def build_trainer(config: DictConfig, folder: Path, gpus: str | None, callbacks: list):
    """Lightning's Trainer from `lightning.trainer`; `gpus` as in "0,1,2", None for the CPU."""
    options = OmegaConf.to_container(config.lightning.trainer, resolve=True)
    options |= {"accelerator": "cpu"} if gpus is None else _devices(gpus)
    options.setdefault("devices", 1)
    if options["devices"] != 1 or options.get("num_nodes", 1) != 1:
        options.setdefault("strategy", "ddp")
    try:
        return pl.Trainer(
            **options,
            callbacks=callbacks,
            logger=build_logger(config, folder),
            default_root_dir=folder,
            log_every_n_steps=config.lightning.log_every,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except TypeError as error:
        raise EgoGenError(f"config: lightning.trainer: {error}") from None


def _devices(gpus: str) -> dict[str, Any]:
    try:
        numbers = [int(number) for number in gpus.strip(",").split(",")]
    except ValueError:
        raise EgoGenError(f"--gpus {gpus}: expected numbers, as in 0,1,2,3") from None
    found = torch.cuda.device_count()
    if max(numbers) >= found:
        raise EgoGenError(f"--gpus {gpus}: this machine has {found} GPUs, numbered from 0")
    return {"accelerator": "gpu", "devices": numbers}


def total_steps(config: DictConfig, samples: int, world: int) -> int:
    """Optimizer steps of the whole run, for the time left."""
    options = config.lightning.trainer
    micro = max(1, samples // (config.data.params.batch_size * world))
    per_epoch = -(-micro // options.get("accumulate_grad_batches", 1))
    epochs, steps = options.get("max_epochs"), options.get("max_steps", -1)
    if epochs is None or epochs < 0:
        return steps if steps > 0 else per_epoch * 1000  # Lightning's own default
    return min(per_epoch * epochs, steps) if steps > 0 else per_epoch * epochs


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The run's last.ckpt, checked: a file of another stage is refused by name."""
    path = folder / "checkpoints" / LAST
    if not path.exists():
        return None
    if not is_own(read_weights(path)):
        raise EgoGenError(f"{path}: not a checkpoint of stage 2's training")
    return path


def train(
    config: DictConfig, folder: Path, gpus: str | None = None, seed: int = 23, resume: bool = False
) -> None:
    """Train, or continue, the run in `folder`. Nothing is done when it is finished."""
    if run_folder(config, folder, resume) and not resume:
        print(f"{folder}: training is finished, nothing to do")
        return
    _quiet()
    pl.seed_everything(seed, verbose=False)
    model = LegoModel(config.model.params)
    load_start(model, config.model.params.ckpt_path)
    train_pairs, val_pairs = build_data(config, model, seed)
    settings, cached = config.lightning, bool(config.data.params.cache_path)
    module = LegoTraining(model, config, seed, cached)
    log = TrainingLog(folder, settings.log_every)
    callbacks = [  # in this order: a checkpoint is written when the rest of its step is done
        AverageUpdate(config.model.params.ema_every_micro_batch),
        log,
        SamplePictures(folder / "samples", val_pairs, config),
        Checkpoints(folder / "checkpoints", settings.checkpoint_every, settings.keep_every),
    ]
    trainer = build_trainer(config, folder, gpus, callbacks)
    log.total = total_steps(config, len(train_pairs), trainer.world_size)
    if rank_zero_only.rank == 0:
        (folder / "finished.json").unlink(missing_ok=True)  # a longer run is being asked for
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    ckpt = checkpoint_to_resume(folder)
    data = PairData(train_pairs, val_pairs, config, seed)
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.is_global_zero:
        record = {"steps": trainer.global_step, "asked": asked_length(config)}
        write_json(folder / "finished.json", record)
        print(f"{folder / 'checkpoints' / LAST}: trained for {trainer.global_step} steps")


def _quiet() -> None:
    """Lightning's advertisements and advice that does not apply here."""
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*number of training batches.*smaller than the logging.*")
    warnings.filterwarnings("ignore", ".*lr_scheduler.step.*before.*optimizer.step.*")

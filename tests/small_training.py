"""A tiny training run of stage 2 for tests: data, start weights and the config's overrides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_dataset import WIDTH, write_dataset, write_features

from ldm.checkpoints.layouts import Weights, to_own
from ldm.checkpoints.load import load_start
from ldm.config import TrainConfig, load_config
from ldm.model import LegoModel
from ldm.networks.architecture import build_autoencoder
from ldm.training.saving import Checkpoints
from main import main
from mini.start.ldm_text_tower import build_tower, save_tower, train_tokenizer

CONFIG = Path(__file__).parents[1] / "configs" / "train_mini.yaml"
SMALL = (
    "model.params.unet_config.params.channel_mult=[1,2]",
    "model.params.unet_config.params.attention_resolutions=[2]",
    "model.params.unet_config.params.num_heads=2",
    "model.params.first_stage_config.params.ddconfig.ch_mult=[1,1,1]",
    "model.params.conditioner.feedforward_dim=16",
    f"model.params.conditioner.feature_dim={WIDTH}",
    "data.params.batch_size=2",
    "data.params.cache_path=null",
    "data.params.train.params.flip_prob=0.5",
    "lightning.trainer.max_steps=6",
    "lightning.trainer.check_val_every_n_epoch=2",
    "lightning.checkpoint_every=1",
    "lightning.log_every=1",
    "lightning.logger=none",
    "lightning.callbacks.image_logger.params.max_images=1",
    "inference.steps=2",
)


def write_run(root: Path) -> list[str]:
    """Dataset, features and frozen networks below `root` -> overrides of train_mini.yaml."""
    write_dataset(root)
    overrides = [*SMALL, f"model.params.ckpt_path={root}/start.safetensors"]
    overrides.append(f"model.params.cond_stage_config.params.version={root}/text_tower")
    for part, split in (("train", "train"), ("validation", "val")):
        write_features(root, "ego4d", split, root / "image" / split, root / "text" / split)
        prefix = f"data.params.{part}.params."
        overrides += [
            f"{prefix}data_path={root}/EgoGen/ego4d.fho/{split}",
            f"{prefix}edit_path={root}/ego4d_{split}.json",
            f"{prefix}res=32",
            f"{prefix}additional_cond_path.llava_image={root}/image/{split}",
            f"{prefix}additional_cond_path.llava_text={root}/text/{split}",
        ]
    torch.manual_seed(0)
    params = load_config(TrainConfig, [str(CONFIG)], SMALL).model
    tokenizer = train_tokenizer(["the right hand picks up thing 0 of clip 1"], 600)
    tower = build_tower(tokenizer, 64, layers=1, heads=2)
    save_tower(tower, tokenizer, root / "text_tower")
    vae = build_autoencoder(params.autoencoder, 1.0)
    parts = {"vae": vae, "text_encoder": tower}
    save_file(
        {
            f"{part}.{name}": value.contiguous()
            for part, module in parts.items()
            for name, value in module.state_dict().items()
            if value.is_floating_point()
        },
        root / "start.safetensors",
    )
    return overrides


def write_generation(root: Path) -> tuple[Path, list[str]]:
    """Of such a run with untrained weights -> a checkpoint, and overrides of generate_mini.yaml."""
    overrides = write_run(root)
    config = load_config(TrainConfig, [str(CONFIG)], overrides)
    torch.manual_seed(0)
    model = LegoModel(config.model)
    load_start(model, f"{root}/start.safetensors")
    checkpoint = root / "X.ckpt"
    torch.save({"state_dict": to_own(Weights(model.state_dict()))}, checkpoint)
    words = [word for word in overrides if word.startswith("model.")]
    words += [f"data.metadata_path={root}/ego4d_metadata.json", "data.params.res=32"]
    words += [f"data.params.data_path={root}/EgoGen/ego4d.fho/val"]
    words += [f"data.params.edit_path={root}/ego4d_val.json", "inference.steps=2"]
    words.append("model.params.load_ema=false")
    for kind in ("image", "text"):
        words.append(f"data.params.additional_cond_path.llava_{kind}={root}/{kind}/val")
    return checkpoint, words


def train_run(overrides, logs: Path, name: str, *more: str) -> Path:
    """The entry itself -> the run's folder."""
    words = ["--name", name, "--base", str(CONFIG), "--logdir", str(logs), "--train"]
    main([*words, *overrides, *more])
    return logs / name


def losses(folder: Path) -> dict:
    """{(step, "loss" or "val_loss"): value} of a run's log."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        (r["step"], kind): r[kind] for r in records for kind in ("loss", "val_loss") if kind in r
    }


class Killed(BaseException):
    pass


def kill(monkeypatch, overrides, logs: Path, after: int, *more: str) -> None:
    """Begin run "a" and end it, without any clean-up, after the checkpoint of step `after`."""
    save = Checkpoints.save

    def save_and_die(self, trainer):
        save(self, trainer)
        if trainer.global_step == after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            train_run(overrides, logs, "a", *more)

"""A tiny base and adapters trained on it, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from recipe import image
from small_dataset import WIDTH
from small_training import CONFIG, train_run, write_run

from ldm.config import load_model_params
from ldm.generate import load_model
from ldm.model import LegoModel
from ldm.pipeline import LegoPipeline

CPU = torch.device("cpu")
FILE = "checkpoints/pytorch_lora_weights.safetensors"
LAST = "checkpoints/last.ckpt"
ADAPTERS = (
    "model.params.lora.rank=2",
    "model.params.lora.alpha=6",
    "model.params.lora.targets=[attention,conditioner,conv1]",
    "lightning.trainer.max_steps=3",
    "model.base_learning_rate=1e-2",
    "lightning.callbacks.image_logger.params.batch_frequency=2",
)


class Adapted:
    """`base`: last.ckpt of an ordinary run. `run`: the folder of one that trained adapters on it.

    Training starts from the live weights, which `without_ema` asks for.
    """

    def __init__(self, root: Path):
        self.root, self.overrides = root, write_run(root)
        first = train_run(self.overrides, root / "logs", "base", "lightning.trainer.max_steps=1")
        self.base = first / LAST
        self.overrides += [f"model.params.ckpt_path={self.base}", *ADAPTERS]
        self.run = train_run(self.overrides, root / "logs", "tuned")
        self.file, self.last = self.run / FILE, self.run / LAST

    def params(self, *more: str):
        return load_model_params(
            str(self.run / "config.yaml"), ["model.params.load_ema=true", *more]
        )

    @property
    def without_ema(self):
        return self.params("model.params.load_ema=false")

    def model(self) -> LegoModel:
        """The base without adapters."""
        return load_model(self.without_ema, str(self.base), CPU)

    def write_generate_config(self) -> Path:
        run = OmegaConf.load(self.run / "config.yaml")
        generate = OmegaConf.load(CONFIG.with_name("generate_mini.yaml"))
        model = {k: v for k, v in run.model.params.items() if k in generate.model.params}
        generate.model.params = OmegaConf.merge(generate.model.params, model, {"load_ema": False})
        part = run.data.params.validation.params
        generate.data.params = {k: v for k, v in part.items() if k != "flip_prob"}
        generate.data.metadata_path = str(self.root / "ego4d_metadata.json")
        generate.inference.steps = 1
        OmegaConf.save(generate, self.root / "generate.yaml")
        return self.root / "generate.yaml"


def frame(model: LegoModel | LegoPipeline) -> torch.Tensor:
    """(1, 3, R, R)"""
    pipe = LegoPipeline.from_model(model) if isinstance(model, LegoModel) else model
    pipe.set_progress_bar_config(disable=True)
    draw = np.random.RandomState(0).standard_normal
    features = draw((256, WIDTH)), draw((5, WIDTH))
    photo = Image.fromarray(image("photo", 48, 64))
    words = photo, "the right hand picks up thing 0", *features
    # Nearly without guidance and in one step: rounding is not made larger.
    how = {"guidance_scale": 1.5, "image_guidance_scale": 1.2, "sampler": "ddim"}
    return pipe(*words, num_inference_steps=1, output_type="pt", **how).images

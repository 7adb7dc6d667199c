"""`LegoPipeline`: action frames from one photograph or several, as a pipeline of diffusers.

    pipe = LegoPipeline.from_pretrained("folder")
    frame = pipe(photo, "The right hand lifts the red mug.", "image.npy", "text.npy").images[0]

A folder is made by `scripts/convert_checkpoint.py` from a released checkpoint or one of this
project, or by `LegoPipeline.from_checkpoint(...).save_pretrained`. The sampling loop is the one of
`metrics/inference.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from egogen import EgoGenError
from egogen.features.store import as_feature, load_feature
from egogen.frames import read_rgb, to_rgb
from egogen.seeds import stable_seed
from ldm.conditioning import FeatureConditioner
from ldm.config import load_model_params
from ldm.data import to_features
from ldm.denoiser import UNetDenoiser
from ldm.generate import generate_batch, load_model
from ldm.images import to_image, to_pixels
from ldm.model import DTYPES, LegoModel
from ldm.sampling import SAMPLERS, NoiseSource
from ldm.schema import FeatureParams, InferenceConfig, ModelParams

PREDICTIONS = {"epsilon": "eps", "sample": "x0"}  # diffusers' names -> this project's
OUTPUTS = ("pil", "np", "pt")
Photo = Image.Image | str | os.PathLike
Rows = Tensor | np.ndarray | str | os.PathLike


class LegoPipeline(DiffusionPipeline):
    """Components as in Stable Diffusion, and the conditioner of the features of stage 1.

    `scheduler` records the noise schedule and what the UNet predicts; sampling is this project's.
    `conditioner` is None where a run uses no features. `ema_updates`: how often the EMA, which the
    weights are, was updated in training.
    """

    _optional_components = ["conditioner"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        conditioner: FeatureConditioner | None,
        scheduler: EulerAncestralDiscreteScheduler,
        ema_updates: int = 0,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            conditioner=conditioner,
            scheduler=scheduler,
        )
        self.register_to_config(ema_updates=ema_updates)

    @classmethod
    def from_model(cls, model: LegoModel, ema_updates: int = 0) -> LegoPipeline:
        """The parts of `model` are taken over, not copied."""
        config = model.config
        names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
        scheduler = EulerAncestralDiscreteScheduler(
            num_train_timesteps=config.timesteps,
            beta_start=config.linear_start,
            beta_end=config.linear_end,
            beta_schedule="scaled_linear",
            prediction_type=names[config.parameterization],
            timestep_spacing="linspace",
        )
        tokenizer = model.tokenizer
        tokenizer.model_max_length = config.text_encoder.max_length
        return cls(
            vae=model.vae,
            text_encoder=model.text_encoder,
            tokenizer=tokenizer,
            unet=model.denoiser.network,
            # A network without weights cannot be saved.
            conditioner=model.conditioner if model.conditioner.features else None,
            scheduler=scheduler,
            ema_updates=ema_updates,
        )

    @classmethod
    def from_checkpoint(
        cls, ckpt: str | os.PathLike, config: str | os.PathLike, overrides: Sequence[str] = ()
    ) -> LegoPipeline:
        """A checkpoint, of the released code or of `ldm.training`, and a YAML that it belongs to.

        Its EMA is loaded unless an override says `model.params.load_ema=false`.
        """
        overrides = ["model.params.load_ema=true", *overrides]  # of a training YAML: another matter
        params = load_model_params(str(config), overrides)
        return cls.from_model(load_model(params, str(ckpt), torch.device("cpu")))

    @property
    def _conditioner(self) -> FeatureConditioner:
        return FeatureConditioner([]) if self.conditioner is None else self.conditioner

    @property
    def model(self) -> LegoModel:
        """The components as the model that this project samples with."""
        parts = {
            "denoiser": UNetDenoiser(self.unet),
            "conditioner": self._conditioner,
            "vae": self.vae,
            "text_encoder": self.text_encoder,
        }
        model = LegoModel(self._params(), parts).eval()
        model.tokenizer = self.tokenizer
        return model

    def _params(self) -> ModelParams:
        """Parameters that are not in the networks but decide how they are used."""
        schedule, params = self.scheduler.config, ModelParams()
        params.timesteps = schedule.num_train_timesteps
        params.linear_start, params.linear_end = schedule.beta_start, schedule.beta_end
        params.parameterization = PREDICTIONS[schedule.prediction_type]
        params.scale_factor = self.vae.config.scaling_factor
        params.text_encoder.max_length = self.tokenizer.model_max_length
        params.conditioner.features = self._conditioner.features
        return params

    @torch.no_grad()
    def __call__(
        self,
        image: Photo | Sequence[Photo],
        description: str | Sequence[str],
        image_features: Rows | Sequence[Rows] | None = None,
        text_features: Rows | Sequence[Rows] | None = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 7.5,
        image_guidance_scale: float = 1.5,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        height: int = 256,
        sampler: str = "euler_ancestral",
        output_type: str = "pil",
        return_dict: bool = True,
        features: Mapping[str, Rows | Sequence[Rows]] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Frames of the actions that `description` describes, done in the scenes of `image`.

        Each of the first four is one item or a list of B. image: PIL image of any mode and size, or
        a path. image_features (I, D), text_features (n, D): tensor, array or path of a .npy, as
        stage 1 writes them, where the conditioner uses them; tensors may be (B, ..., D). Features
        of other names are given as `features={name: ...}`.

        seed: a frame depends only on its seed, not on its place in the batch; a list gives each its
        own. generator: one for each image, in place of seeds; a generator seeded with
        `egogen.seeds.stable_seed(inference.seed, clip, action)` gives the frame of
        `metrics/inference.py`.

        output_type: "pil" (images `height` tall at the aspect of `image`), or the network's own
        squares as "np" (B, R, R, 3) in [0, 1] or "pt" (B, 3, R, R), about [-1, 1], not clamped.
        Raises EgoGenError for input that does not fit.
        """
        choices = ("sampler", sampler, tuple(SAMPLERS)), ("output_type", output_type, OUTPUTS)
        for name, value, allowed in choices:
            if value not in allowed:
                raise EgoGenError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
        photos = [_as_rgb(item) for item in _as_list(image)]
        prompts = _one_each("description", description, len(photos))
        given = {"image": image_features, "text": text_features, **(features or {})}
        samples = self._samples(photos, prompts, given)
        model = self.model
        noise = self._noise(_generators(seed, generator, len(photos)))
        # Weights of full precision are used as by metrics/inference.py.
        halves = {DTYPES[name]: name for name in ("fp16", "bf16")}
        precision = halves.get(self.dtype, "auto")
        inference = InferenceConfig(num_inference_steps, sampler=sampler, precision=precision)
        with self._progress(num_inference_steps):
            decoded = generate_batch(
                model, samples, [], inference, image_guidance_scale, guidance_scale, noise=noise
            ).float()
        images: Any = decoded
        if output_type == "pil":
            pairs = zip(decoded, photos, strict=True)
            images = [to_image(x, photo.size, height, "clamp") for x, photo in pairs]
        elif output_type == "np":
            images = ((decoded.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _samples(
        self, photos: list[Image.Image], prompts: list[str], given: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Per photograph what `ldm.data.read_condition` gives for an entry on disk."""
        table, size = self._conditioner.features, self.vae.config.sample_size
        rows = {name: _rows(name, spec, given, len(photos)) for name, spec in table.items()}
        samples = []
        for i, (photo, prompt) in enumerate(zip(photos, prompts, strict=True)):
            features = to_features({name: rows[name][i] for name in table}, table)
            pixels = to_pixels(photo, size)
            samples.append({"pixels": pixels, "prompt": prompt, "features": features})
        return samples

    def _noise(self, generators: list[torch.Generator]) -> NoiseSource:
        cells = self.vae.config.sample_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.vae.config.latent_channels, cells, cells)

        def noise(_: int) -> Tensor:
            draws = [torch.randn(shape, generator=g, device=g.device) for g in generators]
            return torch.stack([draw.to(self.unet.device) for draw in draws])  # (B, c, h, w)

        return noise

    @contextmanager
    def _progress(self, steps: int):
        """A bar that moves with each call of the UNet, once a step with every sampler."""
        with self.progress_bar(total=steps) as bar:

            def move(*_) -> None:  # a hook that returned something would change the UNet's output
                bar.update()

            hook = self.unet.register_forward_hook(move)
            try:
                yield
            finally:
                hook.remove()


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _one_each(name: str, value: Any, count: int) -> list:
    items = _as_list(value)
    if len(items) != count:
        raise EgoGenError(f"{name}: {len(items)} for {count} pictures, expected one for each")
    return items


def _as_rgb(photo: Photo) -> Image.Image:
    return to_rgb(photo) if isinstance(photo, Image.Image) else read_rgb(photo)


def _rows(name: str, spec: FeatureParams, given: Mapping[str, Any], count: int) -> list[np.ndarray]:
    """One (n, D) array per photograph of one feature."""
    found, what = given.get(name), f"{name}_features"
    if found is None:
        raise EgoGenError(f"{what}: missing, the conditioner uses the feature {name!r}")
    if isinstance(found, Tensor | np.ndarray) and found.ndim == 3:
        found = list(found) if len(found) == count else [found]
    rows = None if spec.padded else spec.rows
    return [_read_rows(item, what, spec.width, rows) for item in _one_each(what, found, count)]


def _read_rows(given: Rows, name: str, width: int, rows: int | None) -> np.ndarray:
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.is_floating_point() else given).numpy()
    if isinstance(given, np.ndarray):
        return as_feature(given, name, width, rows)
    return load_feature(given, width, rows)


def _generators(seed: Any, generator: Any, count: int) -> list[torch.Generator]:
    if generator is not None:
        return _one_each("generator", generator, count)
    seeds = _as_list(seed)
    seeds = seeds * count if len(seeds) == 1 else _one_each("seed", seeds, count)
    return [torch.Generator().manual_seed(stable_seed(value, "photo", "0")) for value in seeds]

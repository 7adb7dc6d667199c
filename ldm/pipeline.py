"""`LegoPipeline`: action frames from one photograph or several, as a pipeline of diffusers.

    pipe = LegoPipeline.from_pretrained("folder")
    frame = pipe(photo, "The right hand lifts the red mug.", "image.npy", "text.npy").images[0]

A folder is made by `scripts/convert_checkpoint.py` from a released checkpoint or one of this
project, or by `LegoPipeline.from_checkpoint(...).save_pretrained`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import yaml
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.utils import get_adapter_name
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from egogen import EgoGenError, check_choice, stable_seed
from egogen.atomic import as_umask_says
from egogen.download.hub import local_path
from ldm.checkpoints.diffusers_folder import add_card, add_code
from ldm.checkpoints.lora import FILE
from ldm.conditioning import FeatureConditioner
from ldm.config import (
    check_at_least,
    check_range,
    check_scale,
    check_size,
    distilled_from,
    load_model_params,
)
from ldm.data import given_conditions, one_each
from ldm.denoiser import UNetDenoiser
from ldm.generate import check_steps, generate_batch, load_model
from ldm.images import as_photos, to_image, to_pixels
from ldm.model import DTYPES, LegoModel
from ldm.sampling import HANDED_ON, PREDICTIONS, SAMPLERS, NoiseSource, sampler_of, scheduler_for
from ldm.schema import InferenceConfig, ModelParams

SIZE = 256  # of the networks' frames, where the autoencoder, one for previews, does not know it
OUTPUTS = ("pil", "np", "pt", "latent")
PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
REFUSED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
Photo = Image.Image | str | os.PathLike | np.ndarray | Tensor
Rows = Tensor | np.ndarray | str | os.PathLike


class LegoPipeline(DiffusionPipeline, StableDiffusionMixin, StableDiffusionLoraLoaderMixin):
    """Components as in Stable Diffusion, and the conditioner of the features of stage 1.

    `scheduler` says what the noise schedule is and what the UNet predicts, and its class which of
    `ldm.sampling.SAMPLERS` is used (`sampler_of`). `conditioner` is None where a run uses no
    features. `ema_updates`: how often the EMA, which the weights are, was updated in training;
    `distill`: the scales of the guidance that one branch stands for, where it does.

    A call's first four arguments are one item each, or a list of B. image: see
    `ldm.images.as_photos`. image_features (I, D), text_features (n, D): tensor, array or path of a
    .npy, as stage 1 writes them, where the conditioner uses them; tensors may be (B, ..., D).
    Features of other names are given as `features={name: ...}`. negative_prompt, one or B: the text
    of guidance's branches without the description, "" in training. num_images_per_prompt: N frames
    of each image, one after the other, the first that of N = 1; generators and latents: N * B.

    seed: a frame depends only on its seed, not on its place in the batch; a list gives each its
    own. generator: one for each image, or one for all, in place of seeds; seeded with
    `egogen.seeds.stable_seed(inference.seed, clip, action)` one gives metrics/inference.py's frame.
    latents (B, c, h, w): the noise to start from. sampler: a name in `ldm.sampling.SAMPLERS`, in
    place of the scheduler's. guidance_interval: (low, high) of sigma, outside which one branch is
    evaluated.

    resolution: of the network's frames, a number or (H, W); default: the run's. output_type: "pil"
    (images `height` tall, H by default, at the aspect of `image`), or the network's own as "np"
    (B, H, W, 3) or "pt" (B, 3, H, W), in [0, 1]; or "latent", scaled latents (B, c, h, w).

    callback_on_step_end(pipe, step, t, {"latents": x}) is called after each step; it may return
    {"latents": another x}, and set `pipe._interrupt = True`: calls then stop, and x is the result.
    """

    _optional_components = ["conditioner"]
    _lora_loadable_modules = ["unet", "text_encoder", "conditioner"]
    _callback_tensor_inputs = ["latents"]
    _interrupt, _num_timesteps = False, 0
    interrupt = property(lambda self: self._interrupt)  # which a callback sets, to stop the calls
    num_timesteps = property(lambda self: self._num_timesteps)  # of the last call
    enable_vae_slicing = property(lambda self: self.vae.enable_slicing)  # diffusers' once
    disable_vae_slicing = property(lambda self: self.vae.disable_slicing)
    enable_vae_tiling = property(lambda self: self.vae.enable_tiling)
    disable_vae_tiling = property(lambda self: self.vae.disable_tiling)
    model_cpu_offload_seq = "text_encoder->conditioner->unet->vae"
    # PyTorch's self-attention reads its layers' weights past the hooks that would load them.
    _exclude_from_cpu_offload = ["conditioner"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        conditioner: FeatureConditioner | ModelMixin | None,
        scheduler: SchedulerMixin,
        ema_updates: int = 0,
        resolution: int | Sequence[int] | None = None,
        distill: dict[str, Any] | None = None,
    ):
        super().__init__()
        if type(conditioner).__name__ == FeatureConditioner.__name__:
            conditioner.__class__ = FeatureConditioner  # not that of the file in its folder
        if scheduler is not None:
            scheduler.register_to_config(**{**HANDED_ON, **scheduler.config})
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            conditioner=conditioner,
            scheduler=scheduler,
        )
        self.register_to_config(ema_updates=ema_updates, resolution=resolution, distill=distill)

    @classmethod
    def from_model(cls, model: LegoModel, ema_updates: int = 0) -> Self:
        """The parts of `model` are taken over, not copied."""
        model.tokenizer.model_max_length = model.config.text_encoder.max_length
        return cls(
            vae=model.vae,
            text_encoder=model.text_encoder,
            tokenizer=model.tokenizer,
            unet=model.denoiser.network,
            # A network without weights cannot be saved.
            conditioner=model.conditioner if model.conditioner.features else None,
            scheduler=scheduler_for(model.config),
            ema_updates=ema_updates,
            resolution=model.config.autoencoder.resolution,
            distill=model.config.distill.note,
        )

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, revision: str = "", **kwargs: Any) -> Self:
        """Of a hub name without running its code: this project's stands for it."""
        if not os.path.isdir(name):
            name = local_path(f"{name}@{revision}" if revision else name)
        return super().from_pretrained(name, **kwargs)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """With this project's classes, not a folder's code, which asks for trust. diffusers looks
        for a component's class, and for its base `ModelMixin`, in the module that is named.
        """
        config = super().load_config(*args, **kwargs)
        if isinstance(config, dict):
            config["_class_name"] = cls.__name__
            if config.get("conditioner", [None])[0]:
                config["conditioner"] = [__name__, FeatureConditioner.__name__]
        return config

    def save_config(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Also the code and the card with which diffusers loads the folder; it is written last."""
        super().save_config(save_directory, **kwargs)
        add_code(save_directory)
        add_card(save_directory, self._conditioner.features)
        as_umask_says(Path(save_directory))

    def _upload_folder(self, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """With the card, unless the one at the hub has been written by somebody."""
        if "automatically generated" in (Path(working_dir) / "README.md").read_text("utf-8"):
            add_card(working_dir, self._conditioner.features, repo_id)
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)

    @classmethod
    def from_checkpoint(
        cls, ckpt: str | os.PathLike, config: str | os.PathLike, overrides: Sequence[str] = ()
    ) -> Self:
        """A checkpoint, of the released code or of `ldm.training`, and a YAML that it belongs to.

        Its EMA is loaded unless an override says `model.params.load_ema=false`.
        """
        overrides = ["model.params.load_ema=true", *overrides]  # of a training YAML: another matter
        params = load_model_params(str(config), overrides)
        return cls.from_model(load_model(params, str(ckpt), torch.device("cpu")))

    def load_lora_weights(self, source: Any, adapter_name: str | None = None, **more: Any) -> None:
        """What diffusers' pipelines of Stable Diffusion v1 load, and a run's adapters."""
        if isinstance(source, str | os.PathLike):
            source = source if os.path.exists(source) else local_path(source)
            whole = os.path.isdir(source) and "weight_name" not in more
            source = os.path.join(source, FILE) if whole else source
        more["adapter_name"] = adapter_name or get_adapter_name(self.unet)
        super().load_lora_weights(source, **more)
        if self.conditioner is not None:
            self.conditioner.load_lora_adapter(source, "conditioner", **more)

    def fuse_lora(self, components: Sequence[str] | None = None, *args: Any, **kwargs: Any) -> None:
        super().fuse_lora(components or self._lora_loadable_modules, *args, **kwargs)

    def unfuse_lora(self, components: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().unfuse_lora(components or self._lora_loadable_modules, **kwargs)

    @property
    def _conditioner(self) -> FeatureConditioner:
        return FeatureConditioner([]) if self.conditioner is None else self.conditioner

    @property
    def model(self) -> LegoModel:
        """The components as the model that this project samples with."""
        parts: dict[str, Any] = {"denoiser": UNetDenoiser(self.unet), "vae": self.vae}
        parts |= {"conditioner": self._conditioner, "text_encoder": self.text_encoder}
        # What is not in the networks but decides how they are used.
        schedule, params = self.scheduler.config, ModelParams()
        params.timesteps = schedule.num_train_timesteps
        params.linear_start, params.linear_end = schedule.beta_start, schedule.beta_end
        params.parameterization = PREDICTIONS[schedule.prediction_type]
        params.scale_factor = self.vae.config.scaling_factor
        params.text_encoder.max_length = self.tokenizer.model_max_length
        params.distill = distilled_from(self.config.distill, "pipeline: ")
        params.conditioner.features = self._conditioner.features
        model = LegoModel(params, parts)
        model.tokenizer, model.execution_device = self.tokenizer, self._execution_device
        return model

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
        height: int | None = None,
        sampler: str | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        features: Mapping[str, Rows | Sequence[Rows]] | None = None,
        latents: Tensor | None = None,
        resolution: int | Sequence[int] | None = None,
        guidance_interval: Sequence[float] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        callback_on_step_end: Callable[..., Mapping[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **others: Any,
    ) -> ImagePipelineOutput | tuple:
        """Frames of the actions that `description` describes, done in the scenes of `image`.

        The arguments are described at the class. Raises EgoGenError for input that does not fit.
        """
        _refuse(others)
        inference = self._inference(num_inference_steps, height, sampler)
        size = self._size(resolution)
        check_at_least(1, "num_images_per_prompt", num_images_per_prompt)
        check_scale("guidance_scale", guidance_scale)
        check_scale("image_guidance_scale", image_guidance_scale)
        if guidance_interval is not None:
            check_range("guidance_interval", guidance_interval)
            inference.guidance_interval = [*guidance_interval]
        check_choice("output_type=", output_type, OUTPUTS)
        photos = as_photos(image)
        texts = {"description": description}
        texts |= {"negative_prompt": negative_prompt} if negative_prompt is not None else {}
        given = {"image": image_features, "text": text_features, **(features or {})}
        table, copies = self._conditioner.features, range(num_images_per_prompt)
        samples = given_conditions([to_pixels(x, size) for x in photos], texts, given, table)
        samples = [one for one in samples for _ in copies]
        photos = [one for one in photos for _ in copies]
        generators = _generators(seed, generator, len(photos), num_images_per_prompt)
        noise = self._noise(generators, (len(photos), *self.model.latent_shape(size)), latents)
        scales = image_guidance_scale, guidance_scale
        self._num_timesteps, self._interrupt = num_inference_steps, False
        with self.progress_bar(total=num_inference_steps) as bar:
            on_step = self._on_step(bar, callback_on_step_end, callback_on_step_end_tensor_inputs)
            how: Any = {"noise": noise, "decode": output_type != "latent", "on_step": on_step}
            made = generate_batch(self.model, samples, [], inference, *scales, **how).float()
        self.maybe_free_model_hooks()
        images = _as_output(made, output_type, photos, height or made.shape[2])
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _size(self, resolution: int | Sequence[int] | None) -> int | list[int]:
        usual, vae = self.config.resolution, self.vae.config  # none in older folders
        given = usual or vae.get("sample_size", SIZE) if resolution is None else resolution
        return check_size("resolution", given, 2 ** (len(vae.block_out_channels) - 1))

    def _inference(self, steps: int, height: int | None, sampler: str | None) -> InferenceConfig:
        """What the numbers and the parts of the pipeline ask for, checked."""
        for name in PARTS:
            if getattr(self, name) is None:
                raise EgoGenError(f"pipeline: {name} is missing, expected one to make frames")
        check_at_least(1, "num_inference_steps", steps)
        check_at_least(1, "height", 1 if height is None else height)
        if sampler is not None:
            check_choice("sampler=", sampler, tuple(SAMPLERS))
        sampler = sampler_of(self.scheduler, sampler)
        check_steps("num_inference_steps", steps, self.scheduler.config.num_train_timesteps)
        # Weights of full precision are used as by metrics/inference.py.
        parts = (self.unet, self.text_encoder, self.conditioner)
        dtypes = {part.dtype for part in parts if part is not None}
        halves = [name for name in ("fp16", "bf16") if DTYPES[name] in dtypes]
        return InferenceConfig(steps, sampler=sampler, precision=[*halves, "auto"][0])

    def _on_step(self, bar: Any, callback: Callable | None, inputs: Sequence[str]) -> Callable:
        """What sampling calls after each step."""
        inputs = getattr(callback, "tensor_inputs", inputs)  # of diffusers' own callbacks
        for name in inputs:
            known = self._callback_tensor_inputs
            check_choice("callback_on_step_end_tensor_inputs=", name, known)

        def on_step(step: int, t: Tensor, x: Tensor) -> Tensor:
            bar.update()
            changed = callback(self, step, t, dict.fromkeys(inputs, x)) if callback else None
            x = _latents((changed or {}).get("latents", x), x.shape).to(x)
            if self._interrupt:
                raise StopIteration(x)
            return x

        return on_step

    def _noise(self, generators: Any, shape: tuple, latents: Tensor | None) -> NoiseSource:
        device = self._execution_device
        if latents is not None and not _latents(latents, shape).isfinite().all():
            raise EgoGenError("latents: hold NaN or infinite values, expected normal noise")

        def noise(k: int) -> Tensor:
            if k == 0 and latents is not None:
                return latents.to(device, torch.float32)
            return randn_tensor(shape, generators, device, torch.float32)

        return noise


def _refuse(others: Mapping[str, Any]) -> None:
    """None and 0, which ask for nothing, pass."""
    for name, value in others.items():
        if name not in REFUSED:
            raise TypeError(f"LegoPipeline() got an unexpected keyword argument {name!r}")
        if value is not None and not (type(value) in (int, float) and value == 0):
            raise EgoGenError(f"{name}: {REFUSED[name]}")


def _latents(given: Any, shape: Sequence[int]) -> Tensor:
    if not isinstance(given, Tensor) or given.shape != tuple(shape):
        found = tuple(getattr(given, "shape", ())) or type(given).__name__
        raise EgoGenError(f"latents: {found}, expected a tensor {tuple(shape)}")
    return given


def _as_output(made: Tensor, kind: str, photos: list[Image.Image], height: int) -> Any:
    if kind != "pil":
        return VaeImageProcessor().postprocess(made, kind)
    pairs = zip(made, photos, strict=True)
    return [to_image(x, photo.size, height, "clamp") for x, photo in pairs]


def _generators(seed: Any, generator: Any, count: int, each: int) -> Any:
    """A generator for each of `count` frames, `each` of a picture, or one that draws for all."""
    if isinstance(generator, torch.Generator):
        return generator
    if generator is not None:
        generators = one_each("generator", generator, count)
        if not all(isinstance(one, torch.Generator) for one in generators):
            raise EgoGenError("generator: expected a torch.Generator, or a list of them")
        return generators
    seeds = one_each("seed", seed, count // each, shared=True)
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise EgoGenError(f"seed={value!r}: expected an integer")
    names = ((value, "photo", str(k)) for value in seeds for k in range(each))
    return [torch.Generator().manual_seed(stable_seed(*name)) for name in names]

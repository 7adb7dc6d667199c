"""The model of stage 2: autoencoder, text tower, conditioner, denoiser, and how they fit together.

Letters: B batch, H W pixels, c latent channels (4), h w latent size (H/8, W/8 at real size), n rows
of a feature, L context rows, D feature width, C context width.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any, Self

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ldm.conditioning import FeatureConditioner, dropout_masks, join_context
from ldm.denoiser import Denoiser
from ldm.networks.architecture import build_parts, load_tokenizer
from ldm.sampling import Conditioning
from ldm.schedule import NoiseSchedule
from ldm.schema import ModelParams, height_width

FROZEN_PARTS = ("vae", "text_encoder")
TOKENIZING = Lock()  # a tokenizer, which threads may share, is set to pad and cut in each call
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class LegoModel(nn.Module):
    """Denoiser, conditioner, autoencoder and text tower, built with random weights unless given.

    `params` also has what is not in these parts: the noise schedule, the dropout probability of the
    conditions, and whether the denoiser predicts noise, clean latents or velocity.
    """

    denoiser: Denoiser
    conditioner: FeatureConditioner
    vae: Any
    text_encoder: Any

    def __init__(
        self, params: ModelParams, parts: Mapping[str, nn.Module | Denoiser] | None = None
    ):
        super().__init__()
        self.config = params
        self.scale_factor = params.scale_factor
        self.schedule = NoiseSchedule(params.linear_start, params.linear_end, params.timesteps)
        self.execution_device: torch.device | None = None  # where the weights are not, offloaded
        for name, part in (parts or build_parts(params)).items():
            setattr(self, name, part)
            if isinstance(part, Denoiser):  # its network is what has weights
                self.add_module(part.name, part.network)
        for name in () if parts else FROZEN_PARTS:  # given parts stay as their owner has them
            getattr(self, name).requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self.execution_device or next(self.denoiser.network.parameters()).device

    def latent_shape(self, size: int | Sequence[int]) -> tuple[int, int, int]:
        """(c, h, w) of images of `size` pixels, one number or (height, width)."""
        config, (height, width) = self.vae.config, height_width(size)
        factor = 2 ** (len(config.block_out_channels) - 1)
        return config.latent_channels, height // factor, width // factor

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in evaluation mode whatever happens to the rest."""
        super().train(mode)
        for name in FROZEN_PARTS:
            if getattr(self, name) is not None:
                getattr(self, name).eval()
        return self

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, all networks are in evaluation mode, without gradients; then as they were."""
        training = [module for module in self.modules() if module.training]
        try:
            with torch.no_grad():
                for module in training:
                    module.training = False
                yield
        finally:
            for module in training:
                module.training = True

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 2c, h, w): mean and log variance of the latents."""
        encoded = self.vae.encode(pixels)
        if "latent_dist" in encoded:
            return encoded.latent_dist.parameters
        # Autoencoders for previews (TAESD) give Stable Diffusion's scaled latents, without spread.
        mean = encoded.latents * self.scale_factor / ModelParams.scale_factor
        return torch.cat([mean, torch.full_like(mean, -30)], dim=1)

    def posterior_sample(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Scaled posterior sample, which is diffused: (B, 2c, h, w) -> (B, c, h, w)."""
        posterior = DiagonalGaussianDistribution(moments)
        return self.scale_factor * (posterior.mean + posterior.std * noise)

    @staticmethod
    def image_latents(moments: Tensor) -> Tensor:
        """The source frame as condition: the mode, not scaled, as in the released code."""
        return moments.chunk(2, dim=1)[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, c, h, w) scaled latents -> (B, 3, H, W), about [-1, 1], not clamped."""
        return self.vae.decode(latents / self.scale_factor).sample

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """Loaded at first use, unless set: a model that is fed from a cache needs none."""
        return load_tokenizer(self.config.text_encoder.version)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """-> (B, 77) int64, padded with the end token and cut, as CLIP does."""
        with TOKENIZING:
            options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            length = self.config.text_encoder.max_length
            return self.tokenizer(prompts, max_length=length, **options).input_ids

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """-> (B, 77, C): last hidden state after the final layer norm; padding is not masked."""
        tokens = self.tokenize(prompts).to(self.execution_device or self.text_encoder.device)
        return self.text_encoder(tokens).last_hidden_state

    def uncond_context(self, empty_prompt: Tensor) -> Tensor:
        """(n, 77, C) text tower on "" -> (n, L, C): features are zeros after the projection."""
        zeros = torch.zeros_like(empty_prompt[:, :1]).expand(-1, self.conditioner.rows, -1)
        return torch.cat([empty_prompt, zeros], dim=1)

    def training_loss(self, batch: Mapping[str, Any], empty_prompt: Tensor) -> Tensor:
        """Mean squared error of the predicted noise (or latents, or velocity), per sample: (B,).

        `batch`: source_moments, edited_moments (B, 2c, h, w), prompt (B, 77, C), features {name:
        (B, n, D)} and the sample's own draws: t (B,), noise, posterior_noise (B, c, h, w), draw
        (B,) for classifier-free dropout.
        """
        prompt_dropped, image_dropped = dropout_masks(batch["draw"], self.config.cond_drop_prob)
        prompt_dropped = prompt_dropped[:, None, None]  # (B, 1, 1)
        latents = self.posterior_sample(batch["edited_moments"], batch["posterior_noise"])
        noisy = self.schedule.add_noise(latents, batch["noise"], batch["t"])  # (B, c, h, w)
        rows = self.conditioner(batch["features"])  # {name: (B, n, C)}
        prompt = torch.where(prompt_dropped, empty_prompt, batch["prompt"])  # (B, 77, C)
        context = join_context(prompt, [part * ~prompt_dropped for part in rows.values()])
        image = self.image_latents(batch["source_moments"])  # (B, c, h, w)
        x = torch.cat([noisy, image * ~image_dropped[:, None, None, None]], dim=1)  # (B, 2c, h, w)
        predicted = self.denoiser(x, batch["t"], context)  # (B, c, h, w)
        velocity = self.schedule.velocity(latents, batch["noise"], batch["t"])  # (B, c, h, w)
        wanted = {"eps": batch["noise"], "x0": latents, "v": velocity}[self.config.parameterization]
        error = (predicted.float() - wanted.float()) ** 2  # (B, c, h, w)
        return error.flatten(1).mean(dim=1)  # (B,)

    def conditions(self, batch: Mapping[str, Any], empty_prompt: Tensor) -> Conditioning:
        """Of a batch of `training_loss`, nothing dropped."""
        context = join_context(batch["prompt"], self.conditioner(batch["features"]).values())
        image = self.image_latents(batch["source_moments"])
        return Conditioning(context, self.uncond_context(empty_prompt), image)

    @torch.no_grad()
    def conditioning(
        self, pixels: Tensor, prompts: list[str], features: Mapping[str, Tensor]
    ) -> Conditioning:
        """Everything the sampler needs for a batch; see `training_loss` for the shapes."""
        batch = {"prompt": self.encode_text(prompts), "features": features}
        batch["source_moments"] = self.encode_moments(pixels)
        return self.conditions(batch, self.encode_text([""]))


def resolved_precision(device: torch.device, precision: str) -> str:
    """ "auto" is fp16 on CUDA, as in the released code, and float32 elsewhere."""
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Mixed precision, see `resolved_precision`."""
    precision = resolved_precision(device, precision)
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])

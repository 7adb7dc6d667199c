"""Sampling: classifier-free guidance as a wrapper of the denoiser, and Euler ancestral steps.

Letters: B batch, c latent channels, h w latent size, L context rows, C context width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from egogen.seeds import stable_seed
from ldm.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> denoised latents
NoiseSource = Callable[[int], Tensor]  # index of the draw -> standard normal like x


@dataclass
class Conditioning:
    """What one batch is conditioned on; `uncond_context` is one for all samples."""

    context: Tensor  # (B, L, C)
    uncond_context: Tensor  # (1, L, C)
    image_latents: Tensor  # (B, c, h, w), mode of the source frame, not scaled


def guided_denoiser(
    unet: Callable[[Tensor, Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    conditioning: Conditioning,
    guidance_scale: float,
    image_guidance_scale: float,
    parameterization: str = "eps",
) -> Denoiser:
    """InstructPix2Pix guidance (its equation 3) with scales of text and image.

    D_u + s_t (D_c - D_i) + s_i (D_i - D_u), where D_c sees context and image, D_i the image
    alone and D_u neither. `unet(x_in, t, context)` predicts the noise ("eps") or the clean latents
    ("x0") from (3B, 2c, h, w).
    """
    batch = conditioning.context.shape[0]
    uncond = conditioning.uncond_context.expand(batch, -1, -1)
    image = conditioning.image_latents
    # (weight, context, image) of D_c, D_i and D_u; one that counts for nothing is not computed.
    branches = [
        (guidance_scale, conditioning.context, image),
        (image_guidance_scale - guidance_scale, uncond, image),
        (1 - image_guidance_scale, uncond, torch.zeros_like(image)),
    ]
    branches = [branch for branch in branches if branch[0] != 0]
    weights = [branch[0] for branch in branches]
    context = torch.cat([branch[1] for branch in branches])
    images = torch.cat([branch[2] for branch in branches])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x_in = torch.cat([x / (sigma**2 + 1) ** 0.5] * len(weights))
        t = schedule.timestep(sigma).expand(len(weights) * batch)
        predicted = unet(torch.cat([x_in, images], dim=1), t, context).float()
        parts = predicted.chunk(len(weights))
        if parameterization == "eps":
            parts = [x - sigma * part for part in parts]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    return denoise


def ancestral_step_sizes(sigma_from: Tensor, sigma_to: Tensor) -> tuple[Tensor, Tensor]:
    """(sigma_down, sigma_up) of a step with eta 1: go down further, then add noise back up."""
    sigma_up = (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5
    sigma_up = torch.minimum(sigma_to, sigma_up)
    return (sigma_to**2 - sigma_up**2) ** 0.5, sigma_up


def sample_euler_ancestral(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Euler ancestral sampling (Karras et al. 2022, algorithm family; released sampler).

    x: (B, c, h, w) float32, already scaled by sigmas[0]; sigmas: (n + 1,) falling to 0.
    """
    for step in range(len(sigmas) - 1):
        sigma = sigmas[step]
        denoised = denoise(x, sigma)
        sigma_down, sigma_up = ancestral_step_sizes(sigma, sigmas[step + 1])
        x = x + (x - denoised) / sigma * (sigma_down - sigma)
        if sigmas[step + 1] > 0:
            x = x + noise(step + 1) * sigma_up
        if callback is not None:
            callback(step, x, denoised)
    return x


class SampleNoise:
    """Noise that belongs to each sample: draw k of sample i depends on (seed, names of i) alone.

    Each sample has a generator of its own on the CPU, so that neither batch composition nor the
    device changes a picture.
    """

    def __init__(self, seed: int, names: list[tuple[str, ...]], shape: tuple[int, ...], device):
        self.generators = [
            torch.Generator().manual_seed(stable_seed(seed, *parts)) for parts in names
        ]
        self.shape, self.device = shape, device

    def __call__(self, index: int) -> Tensor:
        """Draws come in order; `index` is for sources that replay stored noise."""
        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device)

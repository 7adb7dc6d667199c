"""Sampling: classifier-free guidance as a wrapper of the denoiser, and Euler ancestral steps.

Letters: B batch, c latent channels, h w latent size, L context rows, C context width, n branches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.schedule import NoiseSchedule

Predictor = Callable[[Tensor, Tensor], Tensor]  # (x_in, t) -> noise or clean latents
Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> denoised latents
NoiseSource = Callable[[int], Tensor]  # index of the draw -> standard normal like x


@dataclass
class Conditioning:
    """What one batch is conditioned on; `uncond_context` is one for all samples."""

    context: Tensor  # (B, L, C)
    uncond_context: Tensor  # (1, L, C)
    image_latents: Tensor  # (B, c, h, w), mode of the source frame, not scaled


@dataclass
class Guidance:
    """The n branches of classifier-free guidance, as one batch of n * B."""

    weights: list[float]  # n
    contexts: Tensor  # (B + 1, L, C): each sample's own and the unconditional one
    rows: Tensor  # (n * B,) int64: which of the contexts an item of the batch sees
    images: Tensor  # (n * B, c, h, w)


def guidance_branches(
    conditioning: Conditioning, guidance_scale: float, image_guidance_scale: float
) -> Guidance:
    """InstructPix2Pix guidance (its equation 3) with scales of text and image.

    D_u + s_t (D_c - D_i) + s_i (D_i - D_u), where D_c sees context and image, D_i the image
    alone and D_u neither: a weighted sum, of which what weighs nothing is left out.
    """
    image = conditioning.image_latents
    batch = image.shape[0]
    own = torch.arange(batch, device=image.device)
    uncond = torch.full_like(own, batch)
    branches = [
        (guidance_scale, own, image),
        (image_guidance_scale - guidance_scale, uncond, image),
        (1 - image_guidance_scale, uncond, torch.zeros_like(image)),
    ]
    branches = [branch for branch in branches if branch[0] != 0]
    return Guidance(
        weights=[branch[0] for branch in branches],
        contexts=torch.cat([conditioning.context, conditioning.uncond_context]),
        rows=torch.cat([branch[1] for branch in branches]),
        images=torch.cat([branch[2] for branch in branches]),
    )


def guided_denoiser(
    predict: Predictor, schedule: NoiseSchedule, guidance: Guidance, parameterization: str = "eps"
) -> Denoiser:
    """-> denoise(x (B, c, h, w), sigma ()) -> the guided estimate of the clean latents.

    `predict(x_in (nB, 2c, h, w), t (nB,))` knows its contexts (those of `guidance`) and gives the
    noise ("eps") or the clean latents ("x0"). The weights sum to one, so that guiding estimates of
    the clean latents, as here and as released, is guiding noise.
    """
    weights, images = guidance.weights, guidance.images

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x_in = torch.cat([x / (sigma**2 + 1) ** 0.5] * len(weights))
        t = schedule.timestep(sigma).to(x.device).expand(len(images))
        parts = predict(torch.cat([x_in, images], dim=1), t).float().chunk(len(weights))
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

    x: (B, c, h, w) float32, already scaled by sigmas[0]; sigmas: (n + 1,) falling to 0, best on
    the CPU, where reading one does not wait for the device. `noise` is asked for draws 1 to n - 1;
    the last step adds none. `callback(step, x after it, denoised)`.
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

"""The samplers by name: the released one and faster ones of diffusers, over the same denoiser.

The library's solvers get guided estimates of the clean latents (prediction type "sample"), so that
guidance stands in one place and networks of either parameterization work with all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from ldm.sampling import Denoiser, NoiseSource, sample_euler_ancestral
from ldm.schedule import NoiseSchedule

# (denoiser, schedule, steps, noise) -> latents (B, c, h, w)
Sampler = Callable[[Denoiser, NoiseSchedule, int, NoiseSource], Tensor]


def euler_ancestral(
    denoise: Denoiser, schedule: NoiseSchedule, steps: int, noise: NoiseSource
) -> Tensor:
    """The released sampler and its sigmas; takes `steps` draws of noise."""
    sigmas = schedule.sampling_sigmas(steps)
    return sample_euler_ancestral(denoise, noise(0) * sigmas[0], sigmas, noise)


def _solver(kind: type, **options: Any) -> Sampler:
    """A deterministic solver of diffusers; takes one draw of noise, the start."""

    def sample(
        denoise: Denoiser, schedule: NoiseSchedule, steps: int, noise: NoiseSource
    ) -> Tensor:
        scheduler = kind(
            num_train_timesteps=schedule.steps,
            trained_betas=schedule.betas.numpy(),
            prediction_type="sample",
            **options,
        )
        scheduler.set_timesteps(steps)
        x = noise(0)
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
            # The solvers keep unit variance; the denoiser takes clean latents plus sigma * noise.
            clean = denoise(x * (sigma**2 + 1) ** 0.5, sigma)
            x = scheduler.step(clean, t, x).prev_sample
        return x

    return sample


SAMPLERS: dict[str, Sampler] = {
    "euler_ancestral": euler_ancestral,
    # Sigmas of Karras et al. 2022 (equation 5): with even timesteps the last step, from a sigma of
    # 0.3 to 0, costs these solvers their second order.
    "dpmpp_2m": _solver(DPMSolverMultistepScheduler, use_karras_sigmas=True),
    "unipc": _solver(UniPCMultistepScheduler, use_karras_sigmas=True),
    # DDIM is the solver of order 1 (Lu et al. 2022, DPM-Solver, section 4.1). diffusers' own DDIM
    # assumes that `steps` divides the 1000 timesteps.
    "ddim": _solver(DPMSolverMultistepScheduler, solver_order=1, timestep_spacing="trailing"),
}


def draws_of_noise(sampler: str, steps: int) -> int:
    """How many draws of noise one sample takes."""
    return steps if sampler == "euler_ancestral" else 1

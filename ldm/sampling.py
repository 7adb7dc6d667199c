"""Sampling: classifier-free guidance as a wrapper of the denoiser, samplers, sources of noise.

Letters: B batch, c latent channels, h w latent size, L context rows, C context width, n branches.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from egogen import EgoGenError, stable_seed
from ldm.denoiser import Predictor
from ldm.schedule import NoiseSchedule
from ldm.schema import ModelParams

Scale = float | Tensor  # of guidance: a number, or one for each sample, (B, 1, 1, 1)
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> estimate of the clean latents
NoiseSource = Callable[[int], Tensor]  # index of the draw -> standard normal like x
StepEnd = Callable[[int, Tensor], Tensor]  # number of a step, x after it -> x to go on with
AS_IS: StepEnd = lambda step, x: x  # noqa: E731


@dataclass
class Conditioning:
    """What one batch is conditioned on; `uncond_context` is one for all samples, or one each."""

    context: Tensor  # (B, L, C)
    uncond_context: Tensor  # (1 or B, L, C)
    image_latents: Tensor  # (B, c, h, w), mode of the source frame, not scaled


@dataclass
class Guidance:
    """The n branches of classifier-free guidance, as one batch of n * B."""

    weights: list[Scale]  # n
    contexts: Tensor  # (B + 1 or 2B, L, C): each sample's own and the unconditional ones
    rows: Tensor  # (n * B,) int64: which of the contexts an item of the batch sees
    images: Tensor  # (n * B, c, h, w)


def guidance_branches(
    conditioning: Conditioning, guidance_scale: Scale, image_guidance_scale: Scale
) -> Guidance:
    """InstructPix2Pix guidance (its equation 3) with scales of text and image.

    D_u + s_t (D_c - D_i) + s_i (D_i - D_u), where D_c sees context and image, D_i the image
    alone and D_u neither: a weighted sum, of which what weighs nothing is left out.
    """
    image = conditioning.image_latents
    batch = image.shape[0]
    own = torch.arange(batch, device=image.device)
    uncond = batch + own % len(conditioning.uncond_context)
    branches = [
        (guidance_scale, own, image),
        (image_guidance_scale - guidance_scale, uncond, image),
        (1 - image_guidance_scale, uncond, torch.zeros_like(image)),
    ]
    branches = [branch for branch in branches if torch.as_tensor(branch[0]).any()]
    weights, rows, images = zip(*branches, strict=True)
    contexts = torch.cat([conditioning.context, conditioning.uncond_context])
    return Guidance(list(weights), contexts, torch.cat(rows), torch.cat(images))


def guided_denoiser(
    predict: Predictor, schedule: NoiseSchedule, guidance: Guidance, parameterization: str = "eps"
) -> Denoise:
    """-> denoise(x (B, c, h, w), sigma ()) -> the guided estimate of the clean latents.

    `predict(x_in (nB, 2c, h, w), t (nB,))` knows its contexts (those of `guidance`) and gives the
    noise ("eps"), the clean latents ("x0") or the velocity ("v", see `NoiseSchedule.velocity`). The
    weights sum to one, so that guiding estimates of the clean latents, as here and in the released
    code, is guiding what is predicted.
    """
    weights, images = guidance.weights, guidance.images

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x_in = torch.cat([x / (sigma**2 + 1) ** 0.5] * len(weights))  # (nB, c, h, w)
        t = schedule.timestep(sigma).to(x.device).expand(len(images))  # (nB,)
        predicted = predict(torch.cat([x_in, images], dim=1), t).float()  # (nB, c, h, w)
        parts = list(predicted.chunk(len(weights)))  # n of (B, c, h, w)
        if parameterization == "eps":
            parts = [x - sigma * part for part in parts]
        elif parameterization == "v":  # of x / (sigma^2 + 1)^0.5: alpha x - sigma alpha v
            scale = (sigma**2 + 1) ** 0.5
            parts = [x / scale**2 - sigma / scale * part for part in parts]
        weighted = [weight * part for weight, part in zip(weights, parts, strict=True)]
        return sum(weighted[1:], weighted[0])  # (B, c, h, w)

    return denoise


# Samplers are functions of (denoise, x, sigmas, noise, on_step):
# denoise  (x (B, c, h, w), sigma ()) -> estimate of the clean latents (B, c, h, w)
# x        (B, c, h, w) float32, standard normal: draw 0 of the noise; each sampler scales it
# sigmas   (steps + 1,) falling to 0, on the CPU, where reading one does not wait for the device
# noise    index of a draw, from 1 on -> (B, c, h, w) standard normal
#
# A new sampler is a function and a row of SAMPLERS.


def ancestral_step_sizes(sigma_from: Tensor, sigma_to: Tensor) -> tuple[Tensor, Tensor]:
    """(sigma_down, sigma_up) of a step with eta 1: go down further, then add noise back up."""
    sigma_up = (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5
    sigma_up = torch.minimum(sigma_to, sigma_up)
    return (sigma_to**2 - sigma_up**2) ** 0.5, sigma_up


def sample_euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: StepEnd = AS_IS
) -> Tensor:
    """Euler ancestral sampling (Karras et al. 2022, algorithm family), as in the released code.

    Asks `noise` for draws 1 to steps - 1; the last step adds none.
    """
    x = x * sigmas[0]
    for step in range(len(sigmas) - 1):
        sigma = sigmas[step]
        denoised = denoise(x, sigma)  # (B, c, h, w)
        sigma_down, sigma_up = ancestral_step_sizes(sigma, sigmas[step + 1])
        x = x + (x - denoised) / sigma * (sigma_down - sigma)  # (B, c, h, w)
        if sigmas[step + 1] > 0:
            x = x + noise(step + 1) * sigma_up
        x = on_step(step, x)
    return x


def solver(kind: type, **settings: Any) -> Callable[..., Tensor]:
    """A sampler, deterministic: steps of a solver of diffusers along the sigmas, fed with estimates
    of the clean latents. So guidance stands in one place, and either parameterization works.
    """

    def sample(
        denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: StepEnd = AS_IS
    ) -> Tensor:
        scheduler = kind(prediction_type="sample", **settings)
        scheduler.set_timesteps(len(sigmas) - 1)
        scheduler.sigmas = sigmas  # all that `step` reads of the schedule
        scheduler.set_begin_index(0)
        for i, (t, sigma) in enumerate(zip(scheduler.timesteps, sigmas[:-1], strict=True)):
            # The solvers keep unit variance; `denoise` takes clean latents plus sigma * noise.
            clean = denoise(x * (sigma**2 + 1) ** 0.5, sigma)  # (B, c, h, w)
            x = on_step(i, scheduler.step(clean, t, x).prev_sample)  # (B, c, h, w)
        return x

    return sample


def library_sigmas(schedule: NoiseSchedule, steps: int, **options: Any) -> Tensor:
    """Sigmas as diffusers spaces them."""
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.steps, trained_betas=schedule.betas.numpy(), **options
    )
    scheduler.set_timesteps(steps)
    return scheduler.sigmas


class Sampler(NamedTuple):
    """A row of SAMPLERS; `settings`: of `scheduler`, where they are not that class's defaults."""

    run: Callable[..., Tensor]
    sigmas: Callable[[NoiseSchedule, int], Tensor]  # by the number of steps
    scheduler: type | None = None  # the one of diffusers that samples so, if there is one
    settings: Mapping[str, Any] = {}
    draws: Callable[[int], int] = lambda steps: 1  # of noise, the start included


EULER, KARRAS = EulerAncestralDiscreteScheduler, {"use_karras_sigmas": True}
DPMPP, UNIPC = DPMSolverMultistepScheduler, UniPCMultistepScheduler
TRAILING = {"clip_sample": False, "timestep_spacing": "trailing"}
# Karras et al. 2022, equation 5. With even timesteps the last step, from a sigma of 0.3 to 0, costs
# the solvers of order 2 that order.
karras_sigmas = functools.partial(library_sigmas, use_karras_sigmas=True)
# Every (timesteps / steps)-th sigma, counted from the largest.
trailing_sigmas = functools.partial(library_sigmas, timestep_spacing="trailing")
SAMPLERS: dict[str, Sampler] = {
    "euler_ancestral": Sampler(
        sample_euler_ancestral, NoiseSchedule.sampling_sigmas, EULER, draws=lambda steps: steps
    ),
    # DPM-Solver++ of order 2, multistep (Lu et al. 2022), and UniPC of order 2 (Zhao et al. 2023).
    "dpmpp_2m": Sampler(solver(DPMPP), karras_sigmas, DPMPP, KARRAS),
    "unipc": Sampler(solver(UNIPC), karras_sigmas, UNIPC, KARRAS),
    # The solver of order 1 (Lu et al. 2022, DPM-Solver, section 4.1): diffusers' own DDIM assumes
    # that the number of steps divides the 1000 timesteps.
    "ddim": Sampler(solver(DPMPP, solver_order=1), trailing_sigmas, DDIMScheduler, TRAILING),
}


# diffusers' names -> this project's
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# A scheduler in a folder has these beside its own settings: `X.from_config(scheduler.config)` hands
# them to X, which then says what the sampler of that class does.
HANDED_ON = {**KARRAS, "clip_sample": False}
SCHEDULE: dict[str, Sequence[Any]] = {  # settings that sampling honours, with any sampler
    "beta_schedule": ("scaled_linear",),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "prediction_type": tuple(PREDICTIONS),
}
HONOURED = ("num_train_timesteps", "beta_start", "beta_end")
# Without effect unless others are set, which are refused.
IDLE = ("steps_offset", "dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range")


def scheduler_for(params: ModelParams) -> Any:
    """What a folder records, so that diffusers samples as this project does: its default sampler,
    or, for networks that predict clean latents, which diffusers' Euler ancestral does not know,
    DPM-Solver++.
    """
    row = SAMPLERS["dpmpp_2m" if params.parameterization == "x0" else "euler_ancestral"]
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    settings = {
        "num_train_timesteps": params.timesteps,
        "beta_start": params.linear_start,
        "beta_end": params.linear_end,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "linspace",
        "prediction_type": names[params.parameterization],
    }
    return row.scheduler.from_config({**HANDED_ON, **settings})  # type: ignore[union-attr]


def sampler_of(scheduler: Any, sampler: str | None = None) -> str:
    """The row of SAMPLERS that a scheduler of diffusers stands for, by its class; or `sampler`.

    Raises EgoGenError that names a class or a setting which is not what would be sampled.
    """
    config, name = scheduler.config, type(scheduler).__name__
    rows = {row.scheduler: key for key, row in SAMPLERS.items() if row.scheduler}
    allowed = dict(SCHEDULE)
    if not set(HONOURED) <= set(config) or (sampler is None and type(scheduler) not in rows):
        known = ", ".join(kind.__name__ for kind in rows)
        raise EgoGenError(f"scheduler: {name}, expected one of {known}")
    if sampler is None:
        sampler = rows[type(scheduler)]
        settings = SAMPLERS[sampler].settings
        for key, argument in inspect.signature(type(scheduler)).parameters.items():
            if key not in (*HONOURED, *IDLE):
                allowed.setdefault(key, (settings.get(key, argument.default),))
        # What folders record, and `from_config` so hands to every class, asks for nothing.
        allowed["timestep_spacing"] = (*allowed["timestep_spacing"], "linspace")
    for key, values in allowed.items():
        value = config.get(key, values[0])
        if value not in values:
            wanted = " or ".join(map(repr, values))
            raise EgoGenError(f"scheduler: {name} with {key}={value!r}: expected {wanted}")
    return sampler


def sample_noise(
    seed: int, names: Sequence[tuple[str, ...]], shape: tuple[int, ...], device: torch.device
) -> NoiseSource:
    """Noise that belongs to each sample: draw k of sample i depends on (seed, names of i) alone.

    Each sample has a generator of its own on the CPU, so that neither batch composition nor the
    device changes an image. Draws come in order; the index is for sources that replay stored noise.
    """
    generators = [torch.Generator().manual_seed(stable_seed(seed, *parts)) for parts in names]
    return lambda _: randn_tensor((len(names), *shape), generators, device, torch.float32)


class ProcessNoise:
    """As in the released code: one stream of the device, seeded once, from which one sample after
    the other takes all its draws. An image then depends on how many were made before it.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], draws: int, device: torch.device):
        generator = torch.Generator(device).manual_seed(seed)
        how: dict[str, Any] = {"generator": generator, "device": device}
        # By position, the draws (1, c, h, w) of a sample: one call each, which decides the numbers.
        self.samples = enumerate(
            [torch.randn((1, *shape), **how) for _ in range(draws)] for _ in itertools.count()
        )

    def of(self, positions: Sequence[int]) -> NoiseSource:
        """Of the samples at rising `positions`; those between take their draws too."""
        draws = [next(x for at, x in self.samples if at == place) for place in positions]
        return lambda index: torch.cat([draw[index] for draw in draws])

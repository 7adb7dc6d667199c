"""One branch in place of three: a student learns the guided prediction of its teacher.

Stage 1 of Meng et al. 2023, "On Distillation of Guided Diffusion Models" (CVPR), for the two
scales of InstructPix2Pix: fixed ones, or drawn for each sample from ranges and told to the network.

Letters: B batch, c latent channels, h w latent size.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from egogen import EgoGenError
from ldm.checkpoints.diffusers_folder import read_folder
from ldm.checkpoints.layouts import OWN_EMA
from ldm.checkpoints.load import load_weights, read_file
from ldm.checkpoints.released_names import EMA
from ldm.conditioning import join_context
from ldm.model import FROZEN_PARTS, LegoModel
from ldm.sampling import Conditioning, guidance_branches
from ldm.schema import DistillParams, ModelParams


def load_teacher(params: ModelParams) -> LegoModel | None:
    """`distill.teacher`, a checkpoint or folder of any form: its EMA where it has one; or None.

    Raises EgoGenError for one that does not fit the config, or was distilled itself.
    """
    where = params.distill.teacher
    if where is None:
        return None
    teacher = LegoModel(replace(params, distill=DistillParams()))
    if os.path.isdir(where):
        weights = read_folder(where, teacher)
        teacher.load_state_dict(weights.chosen(bool(weights.ema), where))
        return teacher
    state, notes = read_file(where)
    if "distill" in notes:
        raise EgoGenError(f"{where}: was distilled itself, expected a teacher of three branches")
    load_weights(teacher, state, any(name.startswith((OWN_EMA, EMA)) for name in state), where)
    return teacher


def start_from(student: LegoModel, teacher: LegoModel) -> None:
    """The student begins as its teacher, which from then on only predicts."""
    student.load_state_dict(teacher.state_dict(), strict=False)  # lacks what embeds scales: zeros
    for part in FROZEN_PARTS:
        setattr(teacher, part, None)
    teacher.requires_grad_(False).eval()


def scales_of(params: DistillParams, draws: Tensor) -> Tensor:
    """Uniform draws (B, 2) in [0, 1) -> the scales of text and image (B, 2)."""
    low, high = draws.new_tensor(params.ranges).unbind(1)  # (2,), (2,)
    return low + (high - low) * draws


def conditions(model: LegoModel, batch: Mapping[str, Any], empty_prompt: Tensor) -> Conditioning:
    """What a batch of `LegoModel.training_loss` is conditioned on, nothing dropped."""
    rows = model.conditioner(batch["features"]).values()
    image = model.image_latents(batch["source_moments"])
    context = join_context(batch["prompt"], rows)
    return Conditioning(context, model.uncond_context(empty_prompt), image)


@torch.no_grad()
def guided_prediction(
    model: LegoModel, conditioning: Conditioning, noisy: Tensor, t: Tensor, scales: Tensor
) -> Tensor:
    """noisy (B, c, h, w), t (B,), scales (B, 2) -> what guidance predicts, (B, c, h, w)."""
    guidance = guidance_branches(conditioning, *scales.T[..., None, None, None])
    count = len(guidance.weights)
    x = torch.cat([torch.cat([noisy] * count), guidance.images], dim=1)  # (nB, 2c, h, w)
    predicted = model.denoiser.hold(guidance.contexts, guidance.rows)(x, t.repeat(count))
    parts = zip(guidance.weights, predicted.float().chunk(count), strict=True)
    return torch.stack([weight * part for weight, part in parts]).sum(dim=0)


def distillation_loss(
    student: LegoModel, teacher: LegoModel, batch: Mapping[str, Any], empty_prompt: Tensor
) -> Tensor:
    """Mean squared error between the student's single branch and the teacher's guided prediction,
    per sample: (B,). Batch as of `LegoModel.training_loss`, with `scales` (B, 2) drawn in [0, 1).
    """
    t, params = batch["t"], student.config.distill
    latents = student.posterior_sample(batch["edited_moments"], batch["posterior_noise"])
    noisy = student.schedule.add_noise(latents, batch["noise"], t)  # (B, c, h, w)
    scales = scales_of(params, batch["scales"])
    wanted = guided_prediction(teacher, conditions(teacher, batch, empty_prompt), noisy, t, scales)
    given = conditions(student, batch, empty_prompt)
    x = torch.cat([noisy, given.image_latents], dim=1)  # (B, 2c, h, w)
    told = {"scales": scales} if params.drawn else {}
    predicted = student.denoiser(x, t, given.context, **told)  # (B, c, h, w)
    return ((predicted.float() - wanted) ** 2).flatten(1).mean(dim=1)  # (B,)

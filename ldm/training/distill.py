"""One branch in place of three: a student learns the guided prediction of its teacher.

Stage 1 of Meng et al. 2023, "On Distillation of Guided Diffusion Models" (CVPR), with both scales
of InstructPix2Pix. Letters: B batch, n branches, c latent channels, h w latent size.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from egogen import EgoGenError
from ldm.checkpoints import checkpoint_place
from ldm.checkpoints.load import load_start, read_file, weights_in
from ldm.model import FROZEN_PARTS, LegoModel
from ldm.sampling import Conditioning, guidance_branches
from ldm.schema import DistillParams


def begin(student: LegoModel) -> LegoModel | None:
    """Loads what training starts from; -> the teacher, if there is one (its EMA if it has one): the
    student begins as it, frozen encoders included.

    Raises EgoGenError for one that is not of the student's sizes, or was distilled itself.
    """
    params = student.config
    if (where := params.distill.teacher) is None:
        load_start(student, params.ckpt_path)
        return None
    if params.distill.drawn and params.lora.rank and "cond_proj" not in params.lora.targets:
        raise EgoGenError(
            "config: model.params.lora.targets: expected cond_proj among them, the layer that is "
            "told which scales of model.params.distill were drawn"
        )
    state, notes = read_file(where := str(checkpoint_place(where)))
    if notes.get("distill"):
        raise EgoGenError(f"{where}: was distilled itself, expected a teacher of three branches")
    teacher = LegoModel(replace(params, distill=DistillParams()))
    weights = weights_in(where, teacher, state)
    teacher.load_state_dict(weights.chosen(bool(weights.ema), where))
    student.load_state_dict(teacher.state_dict(), strict=False)  # lacks what embeds scales: zeros
    for part in FROZEN_PARTS:
        setattr(teacher, part, None)
    return teacher.requires_grad_(False).eval()


@torch.no_grad()
def guided_prediction(
    model: LegoModel, given: Conditioning, noisy: Tensor, t: Tensor, scales: Tensor
) -> Tensor:
    """noisy (B, c, h, w), t (B,), scales of text and image (B, 2) -> (B, c, h, w)."""
    guidance = guidance_branches(given, *scales.T[..., None, None, None])
    count = len(guidance.weights)
    x = torch.cat([torch.cat([noisy] * count), guidance.images], dim=1)  # (nB, 2c, h, w)
    predicted = model.denoiser.hold(guidance.contexts, guidance.rows)(x, t.repeat(count))
    parts = zip(guidance.weights, predicted.float().chunk(count), strict=True)
    return torch.stack([weight * part for weight, part in parts]).sum(dim=0)


def distillation_loss(
    student: LegoModel, teacher: LegoModel, batch: Mapping[str, Any], empty_prompt: Tensor
) -> Tensor:
    """Mean squared error of the student's one branch against the teacher's guidance: (B,).

    Batch as of `LegoModel.training_loss`, with `scales` (B, 2) in [0, 1): where in their ranges.
    """
    t, params = batch["t"], student.config.distill
    low, high = batch["scales"].new_tensor(params.ranges).unbind(1)  # (2,), (2,)
    scales = low + (high - low) * batch["scales"]  # (B, 2)
    latents = student.posterior_sample(batch["edited_moments"], batch["posterior_noise"])
    noisy = student.schedule.add_noise(latents, batch["noise"], t)  # (B, c, h, w)
    wanted = guided_prediction(teacher, teacher.conditions(batch, empty_prompt), noisy, t, scales)
    given = student.conditions(batch, empty_prompt)
    told = {"scales": scales} if params.drawn else {}
    x = torch.cat([noisy, given.image_latents], dim=1)  # (B, 2c, h, w)
    predicted = student.denoiser(x, t, given.context, **told)  # (B, c, h, w)
    return ((predicted.float() - wanted) ** 2).flatten(1).mean(dim=1)  # (B,)

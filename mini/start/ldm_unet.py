"""Train the small UNet to draw frames from texts, as Stable Diffusion v1.5 was trained.

It sees what an action led to and the text that says so, never a source frame: that, and the
features of stage 1, are what training of stage 2 adds.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from egogen import Progress, stable_seed
from ldm.model import LegoModel
from ldm.schema import ModelParams
from mini.start.learning import cosine_rates, learn

BATCH, PEAK = 16, 1e-3  # frames a step, and the highest learning rate


def text_to_image(
    params: ModelParams, vae: nn.Module, tower: nn.Module, tokenizer: Any
) -> LegoModel:
    """A model without features, its UNet random, of these other parts."""
    model = LegoModel(replace(params, conditioner=replace(params.conditioner, features={})))
    model.vae, model.text_encoder, model.tokenizer = vae, tower, tokenizer
    return model


def train_unet(
    model: LegoModel, frames: Tensor, texts: Sequence[Sequence[str]], steps: int, seed: int
) -> float:
    """Train in place on `frames` (N, 3, H, W) uint8, each with one of its texts; -> mean squared
    error of the predicted latents over the last tenth of the steps.
    """
    with Progress(len(frames), "encode", "frames") as progress:
        moments = []
        for part in frames.split(32):
            moments.append(model.encode_moments(part.float() / 127.5 - 1))  # (32, 2c, h, w)
            progress.update(len(part))
    edited, empty = torch.cat(moments), model.encode_text([""])
    draws = torch.Generator().manual_seed(stable_seed(seed, "text to image"))
    shape = (BATCH, *edited[0].chunk(2)[0].shape)

    def loss_of(_: int) -> tuple[Tensor, float]:
        rows = torch.randint(len(frames), (BATCH,), generator=draws)
        which = torch.rand(BATCH, generator=draws).tolist()
        said = [texts[row][int(u * len(texts[row]))] for row, u in zip(rows, which, strict=True)]
        batch = {
            "source_moments": torch.zeros_like(edited[rows]),
            "edited_moments": edited[rows],
            "prompt": model.encode_text(said),
            "features": {},
            "t": torch.randint(model.config.timesteps, (BATCH,), generator=draws),
            "noise": torch.randn(shape, generator=draws),
            "posterior_noise": torch.randn(shape, generator=draws),
            "draw": torch.rand(BATCH, generator=draws),
        }
        loss = model.training_loss(batch, empty).mean()
        return loss, loss.item()

    network = model.denoiser.network
    network.train()
    error = learn(
        network.parameters(), loss_of, cosine_rates(steps, PEAK), "text to image", fused=True
    )
    network.eval()
    return error

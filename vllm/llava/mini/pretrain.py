"""Pretraining on mini scenes: the vision tower on patch labels, then the whole on questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from egogen.frames import read_rgb
from egogen.progress import Progress
from egogen.seeds import stable_seed
from llava.checkpoint import Loaded
from llava.conversation import IMAGE_MARK
from llava.image_processing import ImageProcessor
from llava.mini.scenes import KIND_NAMES, SPOTS, STATES, Scene, patch_labels, questions
from llava.model import Llava
from llava.tokens import collate, encode_conversation, expand_sample

BACKGROUND_WEIGHT = 0.1  # nearly all patches are table


def scene_pixels(scenes: Sequence[Scene], processor: ImageProcessor) -> torch.Tensor:
    """(N, 3, size, size) of all source frames."""
    return processor.batch([read_rgb(scene.frame) for scene in scenes])


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Short linear warmup, then a cosine to zero."""
    warmup = max(1, steps // 20)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        ),
    )


def _learn(parameters, loss_of, *, steps: int, rate: float, what: str) -> float:
    """Minimise `loss_of(step)` with AdamW; returns the mean loss of the last tenth."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule, losses = _schedule(optimizer, steps), []
    with Progress(steps, what, "steps") as progress:
        for step in range(steps):
            loss = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.update()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def pretrain_vision(
    model: Llava,
    scenes: Sequence[Scene],
    pixels: torch.Tensor,
    *,
    steps: int,
    batch_size: int,
    rate: float,
    seed: int,
) -> float:
    """Train the tower so that each patch feature tells kind, spot and condition of what it shows."""
    vision = model.config.vision_config
    grid = vision.image_size // vision.patch_size
    labels = torch.from_numpy(np.stack([patch_labels(scene, grid) for scene in scenes]))
    labels = labels.flatten(2)  # (N, 3, P)
    sizes = (1 + len(KIND_NAMES), 1 + len(SPOTS), 1 + len(STATES))
    heads = nn.Linear(vision.hidden_size, sum(sizes))
    generator = torch.Generator().manual_seed(stable_seed(seed, "vision"))

    def loss_of(_: int) -> torch.Tensor:
        rows = torch.randint(len(scenes), (batch_size,), generator=generator)
        gain = 1 + 0.1 * torch.randn(batch_size, 3, 1, 1, generator=generator)
        logits = heads(model.vision_features(pixels[rows] * gain)).split(sizes, dim=-1)
        total = torch.zeros(())
        for part, size, target in zip(logits, sizes, labels[rows].unbind(1), strict=True):
            weight = torch.ones(size)
            weight[0] = BACKGROUND_WEIGHT
            total = total + F.cross_entropy(part.flatten(0, 1), target.flatten(), weight)
        return total

    parameters = [*model.model.vision_tower.parameters(), *heads.parameters()]
    return _learn(parameters, loss_of, steps=steps, rate=rate, what="pretrain vision")


def pretrain_language(
    loaded: Loaded,
    scenes: Sequence[Scene],
    pixels: torch.Tensor,
    *,
    steps: int,
    batch_size: int,
    rate: float,
    seed: int,
    rounds: int = 5,
) -> float:
    """Train projector and language model to answer questions about what stands where."""
    model, rng = loaded.model, np.random.default_rng(stable_seed(seed, "language"))
    model.model.vision_tower.requires_grad_(False)
    with torch.no_grad():
        seen = torch.cat([model.vision_features(part) for part in pixels.split(64)])  # (N, P, C)

    def sample(row: int):
        turns = questions(scenes[row], rng, rounds)
        turns[0] = f"{IMAGE_MARK}\n{turns[0]}"
        encoded = encode_conversation(turns, loaded.template, loaded.tokenizer)
        return expand_sample(encoded, model.patches)

    def loss_of(_: int) -> torch.Tensor:
        rows = rng.integers(len(scenes), size=batch_size)
        batch = collate([sample(int(row)) for row in rows], loaded.tokenizer.pad_id)
        features = model.model.multi_modal_projector(seen[torch.from_numpy(rows)])
        embeds = model.embed(batch.pop("input_ids"), features)
        return model(inputs_embeds=embeds, **batch).loss

    return _learn(model.parameters(), loss_of, steps=steps, rate=rate, what="pretrain language")

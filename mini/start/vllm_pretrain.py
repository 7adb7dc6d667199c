"""Pretraining on mini scenes: vision on labels of patches, then language on what stands where."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from egogen.frames import read_rgb
from egogen.seeds import stable_seed
from llava.image_processing import ImageProcessor
from llava.tokens import Encoded, collate
from mini.start.learning import flat_rates, learn
from mini.start.vllm_llava import LlavaBase
from mini.start.vllm_scenes import Scene, caption, label_words, patch_labels, questions

BACKGROUND_WEIGHT = 0.1  # nearly all patches are table
BATCH, RATE, DECAY = 16, 3e-3, 0.01  # scenes a step, highest learning rate, weight decay
# In all but the last WHOLE share of the steps, language sees KEPT patches of an image, mostly of
# things: among hundreds of patches of bare table, attention takes very long to find what is asked
# about. The last steps see complete images, half as many at a time.
KEPT, WHOLE = 40, 0.25
CAPTIONS, ROUNDS = 0.3, 6  # share of captions, the others are questions; questions on a scene


def scene_pixels(scenes: Sequence[Scene], processor: ImageProcessor) -> torch.Tensor:
    """(N, 3, size, size) of all source frames; those of mirrored scenes are flipped."""
    pixels: dict[Path, torch.Tensor] = {}
    for scene in scenes:
        if scene.frame not in pixels:
            pixels[scene.frame] = processor(read_rgb(scene.frame))
    return torch.stack(
        [pixels[each.frame].flip(-1) if each.mirrored else pixels[each.frame] for each in scenes]
    )


def word_directions(base: LlavaBase) -> list[torch.Tensor]:
    """Per group of labels the unit directions (labels, D) of their words among the embeddings."""
    table = base.model.get_input_embeddings().weight.detach()
    groups = []
    for words in label_words():
        means = [table[torch.tensor(base.word(word))].mean(0) for word in words]
        groups.append(F.normalize(torch.stack(means), dim=-1))
    return groups


def pretrain_vision(
    base: LlavaBase, scenes: Sequence[Scene], pixels: torch.Tensor, steps: int, seed: int
) -> float:
    """Train tower and projector so that features of patches say what kind of thing they show, where
    and in which condition.

    As with CLIP's tower, what a patch shows lies in the direction of the words for it; these are
    the language model's own embeddings, so that it finds words and patches alike.
    """
    directions = word_directions(base)
    labels = torch.from_numpy(np.stack([patch_labels(scene, base.grid) for scene in scenes]))
    labels = labels.flatten(2)  # (N, 3, P)
    weights = [torch.ones(len(words)) for words in directions]
    for weight in weights:
        weight[0] = BACKGROUND_WEIGHT
    generator = torch.Generator().manual_seed(stable_seed(seed, "vision"))

    def loss_of(_: int) -> tuple[torch.Tensor, float]:
        rows = torch.randint(len(scenes), (BATCH,), generator=generator)
        gain = 1 + 0.1 * torch.randn(BATCH, 3, 1, 1, generator=generator)
        features = base.project(base.see(pixels[rows] * gain))  # (B, P, D)
        total = torch.zeros(())
        for words, weight, target in zip(directions, weights, labels[rows].unbind(1), strict=True):
            logits = (features @ words.T).flatten(0, 1)
            total = total + F.cross_entropy(logits, target.flatten(), weight)
        return total, total.item()

    parts = (base.tower, base.projector)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    rates = flat_rates(steps, RATE)
    return learn(parameters, loss_of, rates, "pretrain vision", weight_decay=DECAY)


def pretrain_language(
    base: LlavaBase, scenes: Sequence[Scene], pixels: torch.Tensor, steps: int, seed: int
) -> float:
    """Train projector and language model to list, and to answer, what stands where."""
    rng = np.random.default_rng(stable_seed(seed, "language"))
    generator = torch.Generator().manual_seed(stable_seed(seed, "patches"))
    base.tower.requires_grad_(False)
    with torch.no_grad():
        seen = torch.cat([base.see(part) for part in pixels.split(64)])  # (N, P, C)
    shown = torch.from_numpy(np.stack([patch_labels(scene, base.grid)[0] for scene in scenes]) > 0)
    weights = torch.where(shown.flatten(1), 1.0, BACKGROUND_WEIGHT)  # (N, P)

    def sample(row: int, patches: int) -> Encoded:
        captioned = rng.random() < CAPTIONS
        turns = caption(scenes[row], rng) if captioned else questions(scenes[row], rng, ROUNDS)
        return base.encode(turns, patches)

    def loss_of(step: int) -> tuple[torch.Tensor, float]:
        complete = step >= steps * (1 - WHOLE)
        patches = base.grid**2 if complete else KEPT
        rows = rng.integers(len(scenes), size=BATCH // (1 + complete))
        batch = collate([sample(int(row), patches) for row in rows], base.pad_id)
        features = seen[torch.from_numpy(rows)]
        if complete:
            places = torch.arange(patches).expand(len(rows), -1)
        else:
            places = torch.multinomial(weights[rows], patches, generator=generator).sort(1).values
            features = features.gather(1, places[..., None].expand(-1, -1, features.shape[-1]))
        loss = base.loss(batch, features, places)
        return loss, loss.item()

    rates = flat_rates(steps, RATE)
    return learn(base.model.parameters(), loss_of, rates, "pretrain language", weight_decay=DECAY)

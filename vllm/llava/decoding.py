"""Batched decoding whose result for a sample depends on that sample and its seed alone.

Letters: B samples, S prompt positions (pictures expanded), D language width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache

from llava.model import Llava
from llava.tokens import left_pad

TOP_K = 50  # the default of the library that the published runs sampled with


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. `temperature` 0 is greedy."""

    temperature: float = 0.2
    top_k: int = TOP_K
    max_new_tokens: int = 1024


@dataclass
class Written:
    """What was decoded for one sample: n ids (the end mark included) and n rows of hidden states.

    Row w is the last layer's state after the final norm that predicts id w, (n, D).
    """

    ids: list[int] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)


def distribution(logits_V: np.ndarray, temperature: float, top_k: int) -> np.ndarray:
    """Probabilities of the next token, (V,) float64; only the `top_k` largest logits count."""
    scaled = logits_V.astype(np.float64) / temperature
    if top_k < scaled.size:
        scaled = np.where(scaled < np.partition(scaled, -top_k)[-top_k], -np.inf, scaled)
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def choose(logits_V: np.ndarray, settings: Decoding, generator: torch.Generator | None) -> int:
    """The next token: the largest logit, or a draw by exactly one number of `generator`."""
    if settings.temperature == 0:
        return int(logits_V.argmax())
    cumulative = distribution(logits_V, settings.temperature, settings.top_k).cumsum()
    draw = torch.rand((), dtype=torch.float64, generator=generator).item() * cumulative[-1]
    return int(np.searchsorted(cumulative, draw, side="right"))


@torch.inference_mode()
def decode(
    model: Llava,
    prompts: Sequence[Sequence[int]],
    features_BPD: torch.Tensor,
    *,
    seeds: Sequence[int],
    settings: Decoding,
    eos_id: int,
    pad_id: int,
    vocabulary: int,
) -> list[Written]:
    """Continue each prompt (ids with the picture expanded) until `eos_id` or `max_new_tokens`.

    Ids from `vocabulary` on are never produced. Prompts are padded on the left; padding is masked
    and positions are counted from each sample's own start. Samples that have ended leave the batch.
    """
    device = model.get_input_embeddings().weight.device
    ids, mask = (tensor.to(device) for tensor in left_pad(prompts, pad_id))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    written = [Written() for _ in prompts]
    active = list(range(len(prompts)))
    embeds = model.embed(ids, features_BPD.to(device))  # (B, S, D)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config.text_config)
    for step in range(settings.max_new_tokens):
        hidden = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]  # (B, D), after the final norm
        logits = model.lm_head(hidden)[:, :vocabulary].float().cpu().numpy()
        rows = hidden.float().cpu().numpy()
        tokens = []
        for row, sample in enumerate(active):
            tokens.append(choose(logits[row], settings, generators[sample]))
            written[sample].ids.append(tokens[-1])
            written[sample].rows.append(rows[row])
        going = [row for row, token in enumerate(tokens) if token != eos_id]
        if not going or step + 1 == settings.max_new_tokens:
            break
        if len(going) < len(active):
            keep = torch.tensor(going, device=device)
            cache.batch_select_indices(keep)
            mask, positions = mask[keep], positions[keep]
            active = [active[row] for row in going]
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
        following = torch.tensor([[tokens[row]] for row in going], device=device)
        embeds = model.get_input_embeddings()(following)  # (B, 1, D)
    return written

"""Batched decoding whose result for a sample depends on that sample and its seed alone.

Letters: B samples, S prompt positions (pictures expanded), D language width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from llava.describing.kv_cache import block_cache
from llava.model import Llava, runs_on
from llava.tokens import left_pad

TOP_K = 50  # the default of the library that the published runs sampled with
SAMPLINGS = ("per-sample", "released")

# (B, V) logits and the numbers of the samples they belong to -> the next token of each.
Choice = Callable[[torch.Tensor, Sequence[int]], list[int]]


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. `temperature` 0 is greedy.

    `sampling` "per-sample": each sample draws from its own seed. "released": all samples of a
    process draw one after the other from one stream, as the published runs did; what a sample gets
    then depends on those before it. (The law and the order are the released ones; the very numbers
    are not, since building the networks took some from that stream.)
    """

    temperature: float = 0.2
    top_k: int = TOP_K
    max_new_tokens: int = 1024
    sampling: str = "per-sample"


@dataclass
class Written:
    """What was written for one sample: n ids (the end mark included) and n rows of hidden states.

    Row w is the last layer's state after the final norm that predicts id w, (n, D) on the CPU in
    the model's precision; None where the engine that wrote the text keeps no hidden states.
    """

    ids: list[int] = field(default_factory=list)
    rows: torch.Tensor | None = None


def distribution(logits_V: np.ndarray, temperature: float, top_k: int) -> np.ndarray:
    """Probabilities of the next token, (V,) float64; only the `top_k` largest logits count."""
    scaled = logits_V.astype(np.float64) / temperature
    if top_k < scaled.size:
        scaled = np.where(scaled < np.partition(scaled, -top_k)[-top_k], -np.inf, scaled)
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def greedy(logits_BV: torch.Tensor, samples: Sequence[int]) -> list[int]:
    return logits_BV.argmax(dim=-1).tolist()


def draw_per_sample(settings: Decoding, seeds: Sequence[int]) -> Choice:
    """Each token by exactly one number of its sample's own generator."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def choose(logits_BV: torch.Tensor, samples: Sequence[int]) -> list[int]:
        # Only the largest logits leave the device, twice as many as count, since equal ones all
        # count; back in the vocabulary's order, so that a number means the same token always.
        width = min(2 * settings.top_k, logits_BV.shape[1])
        values, ids = logits_BV.topk(width, dim=-1)
        ids, order = ids.sort(dim=-1)
        values = values.gather(1, order).float().cpu().numpy()  # (B, 2k)
        ids, tokens = ids.cpu().numpy(), []
        for row, sample in enumerate(samples):
            sums = distribution(values[row], settings.temperature, settings.top_k).cumsum()
            draw = torch.rand((), dtype=torch.float64, generator=generators[sample]).item()
            tokens.append(int(ids[row, np.searchsorted(sums, draw * sums[-1], side="right")]))
        return tokens

    return choose


def draw_released(settings: Decoding, stream: torch.Generator) -> Choice:
    """The released draws: float32 softmax over the top k, one multinomial draw from `stream`,
    which lives on the logits' device.
    """

    def choose(logits_BV: torch.Tensor, samples: Sequence[int]) -> list[int]:
        scaled = logits_BV.float() / settings.temperature
        if settings.top_k < scaled.shape[1]:
            least = scaled.topk(settings.top_k, dim=-1).values[:, -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        drawn = torch.multinomial(scaled.softmax(dim=-1), 1, generator=stream)
        return drawn[:, 0].tolist()

    return choose


@torch.inference_mode()
def decode(
    model: Llava,
    prompts: Sequence[Sequence[int]],
    features_BPD: torch.Tensor,
    *,
    choose: Choice,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    vocabulary: int,
) -> list[Written]:
    """Continue each prompt (ids with the picture expanded) until `eos_id` or `max_new_tokens`.

    Ids from `vocabulary` on are never produced. Prompts are padded on the left; padding is masked
    and positions are counted from each sample's own start. Samples that have ended leave the batch.
    Of all hidden states only those of the last layer that predict a token are kept, on the CPU.
    """
    device = runs_on(model.get_input_embeddings())
    ids, mask = (tensor.to(device) for tensor in left_pad(prompts, pad_id))
    written = [Written() for _ in prompts]
    rows: list[list[torch.Tensor]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    embeds = model.embed(ids, features_BPD.to(device))  # (B, S, D)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = not bool(mask.all())  # without a mask faster kernels can be used
    cache = block_cache()
    for step in range(max_new_tokens):
        hidden = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask if padded else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]  # (B, D), after the final norm
        tokens = choose(model.lm_head(hidden)[:, :vocabulary], active)
        states = hidden.cpu()
        for row, sample in enumerate(active):
            written[sample].ids.append(tokens[row])
            rows[sample].append(states[row])
        going = [row for row, token in enumerate(tokens) if token != eos_id]
        if not going or step + 1 == max_new_tokens:
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
    for sample, states in zip(written, rows, strict=True):
        sample.rows = torch.stack(states)
    return written

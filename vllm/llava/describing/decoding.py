"""Batched decoding: what is written for a sample depends on that sample and its seed, no other.

Letters: B samples, S prompt positions behind the prefix (an image has P of them), P patches of an
image, L positions so far, T of the longest prompt and answer, D language width, H heads, W width of
a head, V vocabulary, k `Decoding.top_k`, n ids of an answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from egogen.errors import EgoGenError
from llava.describing.job import Decoding
from llava.model import Llava, runs_on
from llava.tokens import padded

BLOCK = 64  # spare positions of the key and value cache; a description is some 100 tokens

# (B, V) logits and the numbers of the samples they belong to -> the next token of each.
Choice = Callable[[torch.Tensor, Sequence[int]], list[int]]
OnText = Callable[[str], None]


@dataclass
class Written:
    """What was written for one sample: n ids (the end mark included) and n rows of hidden states.

    Row w is the last layer's state after the final norm that predicts id w, (n, D) on the CPU in
    the model's precision.
    """

    ids: list[int]
    rows: torch.Tensor


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
        ids, order = ids.sort(dim=-1)  # (B, 2k)
        logits = values.gather(1, order).float().cpu().numpy()  # (B, 2k)
        columns, tokens = ids.cpu().numpy(), []
        for row, sample in enumerate(samples):
            sums = distribution(logits[row], settings.temperature, settings.top_k).cumsum()  # (2k,)
            draw = torch.rand((), dtype=torch.float64, generator=generators[sample]).item()
            place = int(np.searchsorted(sums, draw * sums[-1], side="right"))
            tokens.append(int(columns[row, place]))
        return tokens

    return choose


def chooser(settings: Decoding, seeds: Sequence[int]) -> Choice:
    """How the samples with these seeds choose their tokens."""
    return greedy if settings.temperature == 0 else draw_per_sample(settings, seeds)


def told(choose: Choice, decode: Callable[[list[int]], str], on_text: OnText | None) -> Choice:
    """`choose`, that tells `on_text` the first sample's text so far with each of its tokens."""
    ids: list[int] = []

    def choosing(logits_BV: torch.Tensor, samples: Sequence[int]) -> list[int]:
        tokens = choose(logits_BV, samples)
        if on_text and 0 in samples:
            ids.append(tokens[list(samples).index(0)])
            on_text(decode(ids).strip())
        return tokens

    return choosing


def writing_settings(settings: Decoding | None) -> dict[str, Any]:
    """What texts written here depend on besides model, question and seed, for the provenance."""
    return {**asdict(settings), "sampling": "per-sample"} if settings else {}


def no_room(config: Any, prompt: int, answer: Sequence | None, settings: Decoding | None) -> str:
    """Why `prompt` tokens and an answer, known or to be written, have no room in a model, or ""."""
    longest = settings.max_new_tokens if answer is None and settings else len(answer or ())
    length = prompt + longest
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None or length <= context:
        return ""
    return f"{length} tokens with prompt, image and answer, expected at most {context}"


def in_half(values: torch.Tensor, where: str) -> np.ndarray:
    """As float16 on the CPU. Raises EgoGenError for what is not finite there."""
    half = values.to(torch.float16).cpu().numpy()
    if not np.isfinite(half).all():
        raise EgoGenError(f"{where}: features overflow in half precision, expected finite ones")
    return half


class BlockLayer(DynamicLayer):
    """Keys and values of one layer. transformers' own cache copies everything at every token, which
    costs as much as the model itself at batch 8; this one copies once in BLOCK tokens.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of new positions, (B, H, new, W) each -> those of all, (B, H, L, W)."""
        start, both = self.get_seq_length(), (key_states, value_states)
        length = start + key_states.shape[2]
        if not start:
            self.lazy_initialization(*both)
            self._buffers = [new[:, :, :0] for new in both]
        for which, new in enumerate(both):
            if length > self._buffers[which].shape[2]:
                known, (batch, heads, _, width) = self._buffers[which], new.shape
                self._buffers[which] = new.new_empty(batch, heads, length + BLOCK, width)
                self._buffers[which][:, :, :start] = known[:, :, :start]
            self._buffers[which][:, :, start:length] = new  # (B, H, L + spare, W)
        self._view(length)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        length = self.keys.shape[2]
        self._buffers = [buffer[indices.to(buffer.device)] for buffer in self._buffers]
        self._view(length)

    def _view(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


@torch.inference_mode()
def read_prefix(model: Llava, ids: Sequence[int]) -> Cache:
    """Keys and values of the ids that every prompt begins with, (1, H, length, W) in each layer."""
    cache = Cache(layer_class_to_replicate=DynamicLayer)
    known = torch.tensor([ids], device=runs_on(model.get_input_embeddings()))
    embeds = model.embed(known)  # (1, length, D)
    model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
    return cache


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
    prefix: Cache | None = None,
) -> list[Written]:
    """Continue each prompt (ids with the image expanded) until `eos_id` or `max_new_tokens`.

    Ids from `vocabulary` on are never produced. `prefix` is `read_prefix` of what all prompts begin
    with: that is not computed again. What follows it is padded on the left; padding is masked
    and positions are counted from each sample's own start. Samples that have ended leave the batch.
    Of all hidden states only those of the last layer that predict a token are kept, on the CPU.
    """
    device = runs_on(model.get_input_embeddings())
    cache = Cache(layer_class_to_replicate=BlockLayer)
    for number, layer in enumerate(prefix.layers if prefix else ()):
        both = (each.expand(len(prompts), -1, -1, -1) for each in (layer.keys, layer.values))
        cache.update(*both, number)
    start = cache.get_seq_length()
    ids = padded([prompt[start:] for prompt in prompts], pad_id, "left").to(device)  # (B, S)
    mask = padded([[True] * (len(prompt) - start) for prompt in prompts], False, "left")  # (B, S)
    mask = F.pad(mask, (start, 0), value=True).to(device)  # (B, L): prefix, padding, rest
    written: list[tuple[list[int], list[torch.Tensor]]] = [([], []) for _ in prompts]
    active = list(range(len(prompts)))
    embeds = model.embed(ids, features_BPD.to(device))  # (B, S, D)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, start:]  # (B, S)
    masked = not bool(mask.all())  # without a mask faster kernels can be used
    for step in range(max_new_tokens):
        known = {"attention_mask": mask if masked else None, "position_ids": positions}
        made = model.model.language_model(
            inputs_embeds=embeds, past_key_values=cache, use_cache=True, **known
        )
        hidden = made.last_hidden_state[:, -1]  # (B, D), after the final norm
        tokens = choose(model.lm_head(hidden)[:, :vocabulary], active)  # from (B, V) logits
        states = hidden.cpu()  # (B, D)
        for row, sample in enumerate(active):
            written[sample][0].append(tokens[row])
            written[sample][1].append(states[row])
        going = [row for row, token in enumerate(tokens) if token != eos_id]
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(active):
            keep = torch.tensor(going, device=device)
            cache.batch_select_indices(keep)
            mask, positions = mask[keep], positions[keep]
            active = [active[row] for row in going]
        positions = positions[:, -1:] + 1  # (B, 1)
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)  # (B, L + 1)
        following = torch.tensor([[tokens[row]] for row in going], device=device)  # (B, 1)
        embeds = model.get_input_embeddings()(following)  # (B, 1, D)
    return [Written(new, torch.stack(kept)) for new, kept in written]  # rows (n, D)


@torch.inference_mode()
def text_rows(
    model: Llava,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    features_BPD: torch.Tensor,
    pad_id: int,
) -> list[torch.Tensor]:
    """`Written.rows` of answers that are already there, whatever wrote them, by one pass.

    The row that predicts a token sits on the token before it and, with causal attention, is the
    same whether the tokens come one by one or all at once. `prompts` are ids with the image
    expanded, `features_BPD` the images; an answer's last id is the end mark where it has one.
    Sequences are padded on the right, where attention never looks: no mask is needed.
    """
    device = runs_on(model.get_input_embeddings())
    pairs = list(zip(prompts, answers, strict=True))
    # Nothing follows the last token, so its own state is not needed.
    ids = padded([[*prompt, *answer[:-1]] for prompt, answer in pairs], pad_id)  # (B, T)
    embeds = model.embed(ids.to(device), features_BPD.to(device))  # (B, T, D)
    made = model.model.language_model(inputs_embeds=embeds, use_cache=False)
    hidden = made.last_hidden_state  # (B, T, D), after the final norm
    return rows_before(hidden, [len(prompt) + len(answer) for prompt, answer in pairs], answers)


def rows_before(
    hidden_BTD: torch.Tensor, lengths: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """The states that predict each answer's ids, (n, D) on the CPU: each sits on the token before
    its own. `lengths` are those of the prompts with their answers.
    """
    rows = zip(hidden_BTD, lengths, answers, strict=True)
    return [states[length - 1 - len(ids) : length - 1].cpu() for states, length, ids in rows]

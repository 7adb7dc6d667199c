"""Similarity of two texts in EgoVLP's joint space: DistilBERT, its first token, a projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import DistilBertConfig, DistilBertModel

from metrics.networks.library_networks import library_network
from metrics.networks.loading import fill, load_state_dict
from metrics.networks.video_transformer import EMBEDDING
from metrics.networks.word_pieces import word_pieces

LONGEST = 512  # word pieces of a text, the first and the last included


class TextTower(nn.Module):
    """`text_model.*` and `txt_proj.*` of an EgoVLP file."""

    def __init__(self, state: Mapping, path):
        super().__init__()
        config = DistilBertConfig()
        inner = {
            name.removeprefix("text_model."): tensor
            for name, tensor in state.items()
            if name.startswith("text_model.")
        }
        self.text_model = library_network(DistilBertModel, config, inner, path)
        with torch.device("meta"):
            projection = nn.ModuleDict(
                {"txt_proj": nn.Sequential(nn.ReLU(), nn.Linear(config.dim, EMBEDDING))}
            )
        self.txt_proj = fill(projection, state, path)["txt_proj"]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Word pieces (n, length) without padding -> (n, 256)."""
        return self.txt_proj(self.text_model(input_ids=ids).last_hidden_state[:, 0])


@lru_cache(maxsize=1)
def text_tower(path: Path, device: str) -> TextTower:
    """The text side of an EgoVLP file; kept, since both captioners use it."""
    return TextTower(load_state_dict(path), path).to(device)


@torch.inference_mode()
def embeddings(tower: TextTower, ids: Sequence[Sequence[int]], batch_size: int) -> torch.Tensor:
    """Word pieces of n texts -> (n, 256), on the CPU.

    Texts of equal length go together, so none is padded, as the released script does it one by
    one.
    """
    device = next(tower.parameters()).device
    found = torch.empty(len(ids), EMBEDDING)
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    start = 0
    while start < len(order):
        length = len(ids[order[start]])
        numbers = [
            number for number in order[start : start + batch_size] if len(ids[number]) == length
        ]
        found[numbers] = tower(torch.tensor([ids[n] for n in numbers], device=device)).cpu()
        start += len(numbers)
    return found


def cut_ids(tokenizer, text: str) -> list[int]:
    """Word pieces of a text, cut so that 512 are left with the first and the last."""
    return tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"]


def similarities(
    tower: TextTower,
    vocabulary: Path,
    first: Sequence[str],
    second: Sequence[str],
    batch_size: int,
) -> list[float]:
    """Cosine of `first[i]` and `second[i]`, -1 to 1. `vocabulary`: folder of a BERT tokenizer."""
    tokenizer = word_pieces(vocabulary)
    texts = list(dict.fromkeys([*first, *second]))
    ids = [cut_ids(tokenizer, text) for text in texts]
    rows = dict(zip(texts, embeddings(tower, ids, batch_size), strict=True))
    pairs = [torch.stack([rows[text] for text in side]) for side in (first, second)]
    return cosine_similarity(*pairs, dim=1).tolist()

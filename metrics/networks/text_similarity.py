"""Similarity of two texts in EgoVLP's joint space: DistilBERT, its first token, a projection.

Shapes: n texts, l word pieces of each.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import BertTokenizer, DistilBertConfig, DistilBertModel

from egogen.errors import EgoGenError
from metrics.images import equal_groups
from metrics.networks.loading import filled, load_state_dict
from metrics.networks.video_transformer import EMBEDDING, PARTS

VOCABULARY = 30522  # word pieces; another one would not have the ids of the weights
LONGEST = 512  # word pieces of a text, the first and the last included


class TextTower(nn.Module):
    """`text_model.*` and `txt_proj.*` of an EgoVLP file."""

    def __init__(self):
        super().__init__()
        self.text_model = DistilBertModel(DistilBertConfig())
        width = self.text_model.config.dim
        self.txt_proj = nn.Sequential(nn.ReLU(), nn.Linear(width, EMBEDDING))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Word pieces (n, l) int64 without padding -> (n, 256)."""
        states = self.text_model(input_ids=ids).last_hidden_state  # (n, l, 768)
        return self.txt_proj(states[:, 0])


@lru_cache(maxsize=1)
def text_tower(path: Path, device: str) -> TextTower:
    """The text side of an EgoVLP file; kept, since both captioners use it."""
    return filled(TextTower, load_state_dict(path, PARTS), path).to(device)


@torch.inference_mode()
def embeddings(tower: TextTower, ids: Sequence[Sequence[int]], batch_size: int) -> torch.Tensor:
    """Word pieces of n texts -> (n, 256), on the CPU.

    Texts of equal length go together, so that none is padded: the released script has one a batch.
    """
    device = next(tower.parameters()).device
    found = torch.empty(len(ids), EMBEDDING)
    for numbers in equal_groups(list(map(len, ids)), batch_size):
        found[numbers] = tower(torch.tensor([ids[n] for n in numbers], device=device)).cpu()
    return found


def word_pieces(folder: Path) -> BertTokenizer:
    """BERT's uncased tokenizer from a folder with vocab.txt or tokenizer.json, never from a hub."""
    if not folder.is_dir():
        raise EgoGenError(f"{folder}: no such folder, expected vocab.txt of a BERT tokenizer")
    try:
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EgoGenError(f"{folder}: no readable BERT tokenizer ({error})") from None
    if (count := len(tokenizer)) != VOCABULARY:
        raise EgoGenError(f"{folder}: {count} word pieces, expected {VOCABULARY} (uncased)")
    return tokenizer


def cut_ids(tokenizer: BertTokenizer, text: str) -> list[int]:
    """Word pieces of a text, cut so that 512 are left with the first and the last."""
    return tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"]


def similarities(
    tower: TextTower, vocabulary: Path, first: Sequence[str], second: Sequence[str], batch_size: int
) -> list[float]:
    """Cosine of `first[i]` and `second[i]`, -1 to 1. `vocabulary`: folder of a BERT tokenizer."""
    tokenizer = word_pieces(vocabulary)
    texts = list(dict.fromkeys([*first, *second]))
    ids = [cut_ids(tokenizer, text) for text in texts]
    rows = dict(zip(texts, embeddings(tower, ids, batch_size), strict=True))
    left, right = (torch.stack([rows[text] for text in side]) for side in (first, second))
    return cosine_similarity(left, right, dim=1).tolist()

"""A small CLIP-style text tower: a vocabulary of the mini world's texts, and weights for them.

CLIP's tower was trained so that its output says what an image shows; this one is trained so that
its output says what a description states (verb, object, hand, target, place), and to predict the
next token, so that every row carries what was said up to it.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from egogen import DATASETS, stable_seed
from egogen.labels import clean_label
from mini.start.learning import cosine_rates, learn
from mini.world.scene import sample_scene
from mini.world.texts import describe, label, parse_description

LENGTH = 77
BATCH, PEAK = 64, 2e-3  # texts a step, and the highest learning rate
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
FACTS = ("verb", "object", "hand", "target", "place")


def sample_texts(seed: int, scenes: int) -> Iterator[str]:
    """Descriptions and cleaned labels of scenes that no dataset shares (their seeds are apart)."""
    for index in range(scenes):
        rng = np.random.default_rng(stable_seed(seed, "text tower", index))
        dataset = DATASETS[index % len(DATASETS)]
        scene = sample_scene(rng, dataset, 3)
        for action in scene.actions:
            yield describe(scene, action, rng)
            yield clean_label(label(action, dataset, rng), dataset)


def train_tokenizer(texts: list[str], size: int) -> CLIPTokenizer:
    """CLIP's byte-pair rules with at most `size` pieces learnt from these texts.

    All 256 bytes are in the vocabulary, inside and at the end of a word, so that any text can be
    spelt (by itself the trainer keeps only those that it saw).
    """
    letters = sorted(ByteLevel.alphabet())
    alphabet = [*letters, *(letter + "</w>" for letter in letters)]
    start = CLIPTokenizer(vocab={w: i for i, w in enumerate([*alphabet, BEGIN, END])}, merges=[])
    trained = start.train_new_from_iterator(texts, size, show_progress=False)
    merges = json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]
    pieces = list(dict.fromkeys([*alphabet, *("".join(pair) for pair in merges), BEGIN, END]))
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in merges],
    )


def build_tower(tokenizer: CLIPTokenizer, width: int, layers: int, heads: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.convert_tokens_to_ids(BEGIN),
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(END),
    )
    return CLIPTextModel(config)


def fact_labels(texts: list[str]) -> tuple[Tensor, list[int]]:
    """-> (N, facts) int64, 0 where nothing is said, and the number of classes of each fact."""
    facts = [parse_description(text) for text in texts]
    names = [sorted({str(fact[name] or "") for fact in facts} | {""}) for name in FACTS]
    rows = [
        [known.index(str(fact[name] or "")) for name, known in zip(FACTS, names, strict=True)]
        for fact in facts
    ]
    return torch.tensor(rows), [len(known) for known in names]


def train_tower(
    tower: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str], steps: int, seed: int
) -> float:
    """Train in place -> share of facts read rightly off the last token, over the last tenth."""
    tokens = tokenizer(
        texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    ).input_ids
    labels, classes = fact_labels(texts)
    ends = (tokens == tower.config.eos_token_id).int().argmax(dim=1)
    heads = nn.Linear(tower.config.hidden_size, sum(classes))
    words = nn.Linear(tower.config.hidden_size, len(tokenizer))
    parameters = [*tower.parameters(), *heads.parameters(), *words.parameters()]
    generator = torch.Generator().manual_seed(stable_seed(seed, "tower"))

    def loss_of(_: int) -> tuple[Tensor, float]:
        rows = torch.randint(len(texts), (BATCH,), generator=generator)
        batch, last = tokens[rows], ends[rows]
        hidden = tower(batch).last_hidden_state  # (B, 77, C)
        logits = heads(hidden[torch.arange(BATCH), last]).split(classes, dim=1)
        loss = sum(functional.cross_entropy(part, labels[rows, k]) for k, part in enumerate(logits))
        following = batch[:, 1:].masked_fill(torch.arange(LENGTH - 1) >= last[:, None], -100)
        loss = loss + functional.cross_entropy(
            words(hidden[:, :-1]).flatten(0, 1), following.flatten(), ignore_index=-100
        )
        guesses = torch.stack([part.argmax(1) for part in logits], dim=1)
        return loss, (guesses == labels[rows]).float().mean().item()

    rates = cosine_rates(steps, PEAK)
    options: dict[str, Any] = {"clip": math.inf, "weight_decay": 0.01, "fused": True}
    right = learn(parameters, loss_of, rates, "text tower", **options)
    tower.eval().requires_grad_(False)
    return right


def save_tower(tower: CLIPTextModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Config and vocabulary; the weights go into the shared file of the frozen parts."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model_max_length = LENGTH
    tokenizer.save_pretrained(folder)
    tower.config.save_pretrained(folder)

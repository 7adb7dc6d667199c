"""A small sentencepiece vocabulary of the mini world's texts."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from egogen.atomic import write_bytes
from llava.tokenizer import MODEL_FILE, TextTokenizer, load_tokenizer, write_tokenizer_config


def train_tokenizer(
    texts: Iterable[str], folder: Path, size: int, max_length: int = 2048
) -> TextTokenizer:
    """Llama's kind of vocabulary (BPE with bytes for what is unknown), trained on `texts`."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(set(texts))),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    write_bytes(folder / MODEL_FILE, buffer.getvalue())
    write_tokenizer_config(folder, max_length)
    return load_tokenizer(folder)

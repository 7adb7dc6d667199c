"""The uncased word pieces of BERT, from a folder with vocab.txt (and tokenizer.json)."""

from __future__ import annotations

from pathlib import Path

from transformers import BertTokenizer

from egogen.errors import EgoGenError

SIZE = 30522  # of the vocabulary; other ids would not be those of the weights


def word_pieces(folder: Path) -> BertTokenizer:
    """The tokenizer of `folder`, which no name of a hub can stand for."""
    if not folder.is_dir():
        raise EgoGenError(f"{folder}: no such folder, expected vocab.txt of a BERT tokenizer")
    try:
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EgoGenError(f"{folder}: no readable BERT tokenizer ({error})") from None
    if len(tokenizer) != SIZE:
        raise EgoGenError(f"{folder}: {len(tokenizer)} word pieces, expected {SIZE} (uncased)")
    return tokenizer

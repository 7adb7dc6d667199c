"""Curation by a server that users run: transformers' own, with a tiny model made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from real_server import serving_folder
from small_dataset import write_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from egogen.curate.__main__ import main
from egogen.errors import EgoGenError

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant:"
)
TEXT = "The right hand takes the thing from the table, as the left one rests beside it."


def write_model(folder: Path) -> Path:
    """A language model that writes TEXT behind a colon: its pieces are bytes, and TEXT as one.

    What follows depends on the last piece alone: embeddings are unit vectors, layers add nothing.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<pad>", "</s>", *letters, TEXT.replace(" ", "Ġ")]
    vocabulary += [f"<{number}>" for number in range(-len(vocabulary) % 4)]
    pieces = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=len(pieces),
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" not in name:
                value.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(pieces)))
        text = pieces[TEXT.replace(" ", "Ġ")]
        model.lm_head.weight[text, pieces[":"]] = 1
        model.lm_head.weight[1, text] = 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, name of the model)"""
    folder = tmp_path_factory.mktemp("served")
    model = write_model(folder / "model")
    with serving_folder(model, folder / "log.txt") as address:
        yield address, str(model)


@pytest.fixture
def curated(served, tmp_path):
    """What the command says with these words behind it -> exit code, its file."""
    root, out = write_dataset(tmp_path / "data"), tmp_path / "out.json"

    def run(*more: str) -> tuple[int, Path]:
        line = [root, "--name", "ego4d", "--out", out, "--base-url", served[0]]
        return main([str(word) for word in [*line, "--model", served[1], *more]]), out

    return run


def test_descriptions_come(curated):
    code, out = curated()
    rows = json.loads(out.read_text())
    assert code == 0 and [row["conversations"][1]["value"] for row in rows] == [TEXT] * 4


def test_a_text_that_is_cut_is_named(curated, capsys):
    code, out = curated("--request", '{"max_tokens": 1}', "--limit", "1")
    assert code == 1 and not out.exists()
    said = capsys.readouterr().err
    assert "not curated: entry ego4d-train-clip0/0: its text was ended by the server" in said


def test_no_such_model(curated):
    with pytest.raises(EgoGenError, match="--base-url: .*Server is pinned to"):
        curated("--model", "other", "--retries", "0")

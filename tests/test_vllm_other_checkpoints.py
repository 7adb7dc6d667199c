"""Checkpoints of stage 1 as other tools leave them: wrapped, tied, with pieces without a row."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_layouts import assert_same, bin_shards, change
from vllm_tiny import released_state, write_released

from egogen.errors import EgoGenError
from llava.checkpoints.convert import convert
from llava.checkpoints.files import HUB_NAMES, read_weights, rename
from llava.checkpoints.load import EMBEDDINGS, HEAD, load, load_model

RELEASED_HEAD, RELEASED_EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def hub(released, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "hub"
    convert(released, folder, "hub")
    return folder


@pytest.fixture(scope="module")
def wanted(released):
    return load_model(released).state_dict()


def put(folder, state, **more):
    """The weights of `folder` as one torch file."""
    (folder / "model.safetensors").unlink()
    torch.save({**state, **more}, folder / "pytorch_model.bin")


def assert_loads(folder, wanted):
    found = load_model(folder).state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


RULES = {
    "data parallel": "module.{}",
    "data parallel of compiled": "module._orig_mod.{}",
    "compiled of data parallel": "_orig_mod.module.{}",
    "peft": "base_model.model.{}",
    "inside a model": "model.{}",
}


@pytest.mark.parametrize("name", RULES)
def test_names_of_other_tools_in_both_layouts(name, released, hub, wanted, tmp_path):
    for source in (released, hub):
        folder = shutil.copytree(source, tmp_path / source.name)
        state = load_file(folder / "model.safetensors")
        state["model.layers.0.self_attn.rotary_emb.cos_cached"] = torch.ones(3)
        save_file(
            {RULES[name].format(n): value for n, value in state.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        assert_loads(folder, wanted)


def test_states_under_keys_levels_that_are_missing_and_shards(released, wanted, tmp_path):
    state = released_state()
    bare = {name.removeprefix("model."): value for name, value in state.items()}
    compiled = {n.replace("layers.", "layers._orig_mod."): v for n, v in state.items()}
    contents = {
        "deepspeed": {"module": state, "global_steps": np.int64(3), "optimizer": None},
        "lightning": {"state_dict": {f"model.{n}": v for n, v in state.items()}, "epoch": 2},
        "bare": bare,
        "compiled": compiled,
        "language model below": {
            n.replace("model.layers", "language_model.layers"): v for n, v in state.items()
        },
    }
    for name, content in contents.items():
        folder = shutil.copytree(released, tmp_path / name)
        put(folder, content)
        assert_loads(folder, wanted)
    folder = shutil.copytree(released, tmp_path / "shards")
    bin_shards({f"module.{name}": value for name, value in state.items()}, folder)
    assert_loads(folder, wanted)


def tied(source, folder, lacks, head="lm_head.weight"):
    """As transformers writes a model whose head is the embeddings."""
    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    names = {"head": head, "embeddings": next(n for n in state if "embed_tokens" in n)}
    state[names["head"]] = state[names["embeddings"]].clone()
    if lacks:
        del state[names[lacks]]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((folder / "config.json").read_text())
    if "text_config" in fields:
        fields["text_config"]["tie_word_embeddings"] = True
    change(folder, **{**fields, "tie_word_embeddings": True})
    return folder


@pytest.mark.parametrize("lacks", ["head", "embeddings", None])
def test_a_head_that_is_the_embeddings(lacks, released, hub, wanted, tmp_path):
    hub_head = "language_model.lm_head.weight"
    one = load(tied(released, tmp_path / "llava", lacks), device="cpu")
    two = load(tied(hub, tmp_path / "hub", lacks, hub_head), device="cpu")
    for loaded in (one, two):
        found = loaded.model.state_dict()
        assert torch.equal(found[HEAD], wanted[EMBEDDINGS])
        assert torch.equal(found[EMBEDDINGS], wanted[EMBEDDINGS])
    assert_same(one, two)
    for source, form in (("llava", "hub"), ("hub", "llava"), ("llava", "llava")):
        out = tmp_path / f"{source} to {form}"
        convert(tmp_path / source, out, form)
        assert_same(load(out, device="cpu"), one)


def test_a_tied_config_that_has_been_tuned_is_not_written_as_tied(released, tmp_path):
    folder = tied(released, tmp_path / "tied", "head")
    convert(folder, tmp_path / "hub", "hub")
    convert(tmp_path / "hub", tmp_path / "llava", "llava")
    fields = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert fields["tie_word_embeddings"] is False


@pytest.mark.parametrize("name", ["head", "embeddings"])
def test_what_lacks_and_is_not_tied_is_named(name, released, hub, tmp_path):
    for source, stored in (
        (released, {"head": RELEASED_HEAD, "embeddings": RELEASED_EMBEDDINGS}[name]),
        (hub, rename({"head": HEAD, "embeddings": EMBEDDINGS}[name], HUB_NAMES)),
    ):
        folder = shutil.copytree(source, tmp_path / source.name)
        state = load_file(folder / "model.safetensors")
        del state[stored]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        lacking = {"head": HEAD, "embeddings": EMBEDDINGS}[name]
        with pytest.raises(EgoGenError, match=f"missing: {re.escape(lacking)}$"):
            load_model(folder)
        with pytest.raises(EgoGenError, match=f"missing: {re.escape(lacking)}$"):
            convert(folder, tmp_path / f"out {source.name}", "hub")


def test_a_vision_tower_in_a_wrapper(released, wanted, tmp_path):
    folder = shutil.copytree(released, tmp_path / "model")
    inside = "model.vision_tower.vision_tower."
    state = released_state()
    tower = {n.removeprefix(inside): state.pop(n) for n in list(state) if n.startswith(inside)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tower = {f"module.{name}": value for name, value in tower.items()}
    torch.save(
        {"state_dict": tower, "step": np.int64(1)}, folder / "vision_tower" / "pytorch_model.bin"
    )
    assert_loads(folder, wanted)


def test_quantised_and_half_written_weights_are_refused(released, tmp_path):
    for name, words, value in (
        (
            "int8",
            "torch.int8, expected numbers in floating point",
            torch.ones(64, 64).to(torch.int8),
        ),
        ("empty", r"mis-shaped: .*q_proj.weight \(0,\), expected", torch.empty(0)),
    ):
        folder = shutil.copytree(released, tmp_path / name)
        put(folder, released_state() | {"model.layers.0.self_attn.q_proj.weight": value})
        with pytest.raises(EgoGenError, match=words):
            load_model(folder)


def test_a_piece_without_a_row_is_refused_only_in_a_text(released, tmp_path):
    """`<pad>` after all others, as many fine-tunes have it, whose embeddings did not grow."""
    folder = shutil.copytree(released, tmp_path / "padded")
    rows = released_state()[RELEASED_EMBEDDINGS].shape[0]
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": rows}))
    loaded = load(folder, device="cpu")
    assert_same(loaded, load(released, device="cpu"))
    assert max(loaded.tokenizer.encode("lift the mug")) < rows
    told = f"padded: the text holds the piece '<pad>' of id {rows}, expected ids below {rows}"
    with pytest.raises(EgoGenError, match=told):
        loaded.tokenizer.encode("lift the <pad>mug")
    convert(folder, tmp_path / "hub", "hub")
    convert(tmp_path / "hub", tmp_path / "back", "llava")
    assert read_weights(tmp_path / "back")[HEAD].shape[0] == rows
    again = load(tmp_path / "back", device="cpu")
    assert again.tokenizer.added == {"<pad>": rows}


def test_a_tokenizer_of_another_model_is_refused(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "small")
    state = released_state()
    for name in (RELEASED_HEAD, RELEASED_EMBEDDINGS):
        state[name] = state[name][:100].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder, vocab_size=100)
    with pytest.raises(EgoGenError, match="small: tokenizer of .* pieces, expected at most .* 100"):
        load(folder, device="cpu")

"""Checkpoint folders of every layout: read as they are meant, or refused in one line."""

import functools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration
from vllm_layouts import assert_same, bin_shards, change, golden_image, write_two_layers
from vllm_tiny import read, released_state, write_released

from egogen.errors import EgoGenError
from egogen.weight_files import check_names
from llava.checkpoints import config as checkpoint_config
from llava.checkpoints.config import read_config
from llava.checkpoints.files import (
    COMPUTED,
    HUB_NAMES,
    MODEL_NAMES,
    RELEASED_NAMES,
    rename,
)
from llava.checkpoints.load import load, load_model
from llava.model import Llava

TOWER = "model.vision_tower.vision_tower.vision_model."


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def reference(released):
    return load(released, device="cpu")


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    return write_two_layers(tmp_path_factory.mktemp("two"))


# Names and shapes


def test_full_size_names_and_shapes(tmp_path):
    """13,324,292,096 parameters of the released model find their place, and nothing else does."""
    shapes = read("manifest_full.json")
    fields = read("configs.json")["full_size_assumed"]["llava"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with torch.device("meta"):
        model = Llava(read_config(tmp_path))
    assert sum(value.numel() for value in model.parameters()) == 13_324_292_096
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = {name: tuple(s) for name, s in shapes.items() if not name.endswith(COMPUTED)}
    found = {rename(name, MODEL_NAMES): shape for name, shape in weights.items()}
    assert len(found) == len(weights) == 756
    check_names(found, expected, "the released model")
    assert model.patches == 256
    for names in (*RELEASED_NAMES.values(), HUB_NAMES):
        assert all(rename(rename(name, names), MODEL_NAMES) == name for name in expected)
    assert {rename(name, RELEASED_NAMES[1]) for name in expected} == set(weights)


def test_one_error_lists_everything(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "wrong")
    state = released_state()
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        del state[name]
    state["model.extra.weight"] = torch.zeros(1)
    state["lm_head.weight"] = torch.zeros(600, 32)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(EgoGenError) as error:
        load(folder, device="cpu")
    text = str(error.value)
    assert text == (
        f"{folder}: weights that config.json does not fit: "
        "missing: model.language_model.layers.0.mlp.up_proj.weight, "
        "model.language_model.norm.weight; unexpected: model.extra.weight; "
        "mis-shaped: lm_head.weight (600, 32), expected (600, 64)"
    )


# Layouts


@pytest.mark.parametrize("name", ["mpt-prompt", "no-family", "checkpoint-5"])
def test_config_decides_whatever_the_folder_is_called(released, reference, tmp_path, name):
    folder = shutil.copytree(released, tmp_path / name)
    loaded = load(folder, device="cpu")
    assert loaded.template == reference.template
    assert loaded.model.config.projector_layers == 1
    assert_same(loaded, reference)


@pytest.mark.parametrize("legacy", [False, True])
def test_bin_shards(released, reference, tmp_path, legacy):
    """`legacy` is torch's format before 2020, which cannot be mapped."""
    folder = shutil.copytree(released, tmp_path / "bin")
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        f"{TOWER}embeddings.position_ids": torch.arange(257)[None],
    }
    if legacy:
        (folder / "model.safetensors").unlink()
        torch.save(
            released_state() | buffers,
            folder / "pytorch_model.bin",
            _use_new_zipfile_serialization=False,
        )
    else:
        bin_shards(released_state() | buffers, folder)
    torch.save({"optimizer": 1}, folder / "training_args.bin")  # beside it, and none of the weights
    assert_same(load(folder, device="cpu"), reference)


class Executed:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_code_is_not_executed(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "bad")
    (folder / "model.safetensors").unlink()
    proof = tmp_path / "executed"
    torch.save({**released_state(), "more": Executed(proof)}, folder / "pytorch_model.bin")
    with pytest.raises(EgoGenError, match="pytorch_model.bin"):
        load(folder, device="cpu")
    assert not proof.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_file_that_is_cut_short(released, tmp_path, suffix):
    folder = shutil.copytree(released, tmp_path / "cut")
    path = folder / "model.safetensors"
    if suffix == "bin":
        path.unlink()
        path = folder / "pytorch_model.bin"
        torch.save(released_state(), path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(EgoGenError, match=f"{path.name}: not a readable weight file"):
        load(folder, device="cpu")


def test_missing_shards_are_listed(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "shards")
    bin_shards(released_state(), folder)
    for number in (1, 3):
        (folder / f"pytorch_model-{number:05}-of-00003.bin").unlink()
    with pytest.raises(EgoGenError, match="2 shards are missing: .*00001-of.*, .*00003-of"):
        load(folder, device="cpu")


def test_index_that_leaves_the_folder(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "away")
    bin_shards(released_state(), folder)
    index = {"weight_map": {"lm_head.weight": "../released/model.safetensors"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(EgoGenError, match="expected a 'weight_map' from weights to files beside"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"mm_projector_type": "resampler"}, "projector 'resampler'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_what_config_may_not_say(released, tmp_path, fields, words):
    folder = shutil.copytree(released, tmp_path / "config")
    change(folder, **fields)
    with pytest.raises(EgoGenError, match=words) as error:
        load(folder, device="cpu")
    assert "config.json" in str(error.value)


def without_tower(released, folder):
    """A checkpoint without vision tower, and the tower's weights as its authors publish it."""
    shutil.copytree(released, folder)
    shutil.rmtree(folder / "vision_tower")
    state = released_state()
    rest = {name: value for name, value in state.items() if not name.startswith(TOWER)}
    save_file(rest, folder / "model.safetensors")
    tower = {f"vision_model.{k.removeprefix(TOWER)}": state[k] for k in state.keys() - rest.keys()}
    return {
        **tower,
        "text_model.final_layer_norm.weight": torch.ones(3),
        "logit_scale": torch.ones(1),
    }


def write_tower(folder, tower, kind="safetensors"):
    folder.mkdir(parents=True)
    vision = read("configs.json")["clip_vision"]
    (folder / "config.json").write_text(json.dumps({"vision_config": vision}))
    if kind == "bin":
        torch.save(tower, folder / "pytorch_model.bin")
    else:
        save_file(tower, folder / "model.safetensors")


@pytest.mark.parametrize("where", ["absolute", "beside", "argument", "default", "hub"])
def test_vision_tower_from_elsewhere(released, reference, tmp_path, monkeypatch, where):
    folder, given = tmp_path / "model", None
    tower = without_tower(released, folder)
    if where == "absolute":
        write_tower(tmp_path / "clip", tower)
        change(folder, mm_vision_tower=str(tmp_path / "clip"))
    elif where == "beside":
        write_tower(folder / "towers" / "clip", tower, "bin")
        change(folder, mm_vision_tower="towers/clip")
    elif where == "argument":
        write_tower(tmp_path / "clip", tower)
        given = str(tmp_path / "clip")
    elif where == "default":
        write_tower(folder / "vision_tower", tower)
    else:
        cached = tmp_path / "cache" / "models--openai--clip-tiny"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("abc")
        write_tower(cached / "snapshots" / "abc", tower)
        look_up = functools.partial(
            checkpoint_config.cached_file, cache_dir=tmp_path / "cache", local_files_only=True
        )
        monkeypatch.setattr(checkpoint_config, "cached_file", look_up)
    assert_same(load(folder, device="cpu", vision_tower=given), reference)


def test_no_vision_tower_anywhere(released, tmp_path, monkeypatch):
    def offline(*_):
        raise OSError

    monkeypatch.setattr(checkpoint_config, "cached_file", offline)
    without_tower(released, tmp_path / "model")
    with pytest.raises(EgoGenError, match="'openai/clip-tiny' is neither a folder nor a name"):
        load(tmp_path / "model", device="cpu")
    change(tmp_path / "model", mm_vision_tower="openai/clip-vit-large-patch14", mm_hidden_size=1024)
    with pytest.raises(EgoGenError, match="holds no vision tower"):
        load(tmp_path / "model", device="cpu")


def test_the_tower_inside_is_used(released, reference, tmp_path):
    """The released code reloads the tower by its name and ignores the weights of the checkpoint."""
    other = {name: value + 1 for name, value in without_tower(released, tmp_path / "x").items()}
    write_tower(tmp_path / "clip", other)
    assert_same(load(released, device="cpu", vision_tower=str(tmp_path / "clip")), reference)


def test_two_projector_layers(two_layers, tmp_path):
    loaded = load(two_layers, device="cpu")
    assert loaded.model.config.conversation_template == "vicuna_v1"
    state = load_file(two_layers / "model.safetensors")
    pixels = loaded.image_processor.batch([golden_image()])
    with torch.no_grad():
        rows = loaded.model.vision_features(pixels)
        for layer in (0, 2):
            weight, bias = (state[f"model.mm_projector.{layer}.{k}"] for k in ("weight", "bias"))
            rows = torch.nn.functional.linear(rows, weight, bias)
            rows = torch.nn.functional.gelu(rows) if layer == 0 else rows
        torch.testing.assert_close(loaded.model.image_features(pixels), rows)


@pytest.mark.parametrize("names", ["current", "classic"])
def test_folder_that_transformers_wrote(two_layers, tmp_path, names):
    """`classic` names are those of the llava-hf folders on the hub."""
    model = load_model(two_layers)
    theirs = LlavaForConditionalGeneration(model.config)
    theirs.load_state_dict(model.state_dict())
    theirs.save_pretrained(tmp_path)
    if names == "classic":
        state = {rename(name, HUB_NAMES): value for name, value in model.state_dict().items()}
        assert "language_model.model.layers.0.mlp.up_proj.weight" in state
        assert "vision_tower.vision_model.pre_layrnorm.weight" in state
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = load_model(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name

"""Checkpoints in all their forms: names, shapes, the start of training, conversion, bad files."""

import json
import os
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from recipe import tensor
from released_model import DATA, TINY, check, inputs
from safetensors.torch import load_file, save_file
from small_model import assert_equal_weights, random_model, write_small
from transformers import CLIPTextConfig

from egogen import EgoGenError
from ldm.checkpoints.convert import bare_model
from ldm.checkpoints.layouts import POSITIONS, UPDATES, Weights, from_released, to_own, to_released
from ldm.checkpoints.load import (
    load_start,
    load_weights,
    read_file,
    read_weights,
    weights_in,
)
from ldm.checkpoints.released_names import released_names, stored_name
from ldm.config import TrainConfig, load_config
from ldm.model import LegoModel
from ldm.pipeline import LegoPipeline
from ldm.schedule import released_schedule
from ldm.training.ema import EMA

CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"

PROJECT = Path(__file__).parents[1]
UNTOUCHED = json.loads((DATA / "surgery.json").read_text())["load_ema_false"]["missing_outside_ema"]


def manifest(name):
    return json.loads((DATA / name).read_text())["state_dict"]


def bare_state(names):
    """A state dict without memory; what loading looks into is there."""
    state = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (shape, dtype) in names.items()
    }
    known = released_schedule(0.00085, 0.012, 1000) | {UPDATES: torch.tensor(5)}
    return state | {name: value for name, value in known.items() if name in state}


def told(state):
    return {n: [list(v.shape), str(v.dtype).removeprefix("torch.")] for n, v in state.items()}


@pytest.mark.parametrize("name, overrides", [("full", ()), ("tiny", TINY)])
def test_released_names_and_shapes_both_ways(name, overrides):
    model = bare_model(load_config(TrainConfig, [], overrides).model)
    names = manifest(f"manifest_{name}.json")
    weights = from_released(bare_state(names), model, "file")
    assert told(weights.live) == told(model.state_dict())
    unet = {n: v for n, v in model.state_dict().items() if n.startswith("unet.")}
    assert told(weights.ema) == told(unet) and weights.updates == 5
    assert told(to_released(weights, model)) == {n: list(kind) for n, kind in names.items()}


def test_stable_diffusion_names_and_shapes():
    model = bare_model(load_config(TrainConfig, [], []).model)
    names = manifest("manifest_sd15_layout.json")
    assert names[CONV_IN][0] == [320, 4, 3, 3]
    live = weights_in("file", model, bare_state(names), start=True).live
    own = {n: v for n, v in model.state_dict().items() if not n.startswith("conditioner.")}
    assert told(live) == told(own)


def test_names_agree_with_the_converters_of_diffusers():
    """Which know nothing of ours: every tensor, by its value, ends under the same name."""
    model = bare_model(load_config(TrainConfig, [], []).model)
    names = released_names(model)
    numbered = {released: torch.tensor(float(i)) for i, released in enumerate(names.values())}
    unet = {n: v for n, v in numbered.items() if n.startswith("model.")}
    vae = {n: v for n, v in numbered.items() if n.startswith("first_stage_model.")}
    parts = {
        "unet": convert_ldm_unet_checkpoint(unet, dict(model.unet.config)),
        "vae": convert_ldm_vae_checkpoint(vae, dict(model.vae.config)),
    }
    for part, converted in parts.items():
        ours = {n: v for n, v in names.items() if n.startswith(part + ".")}
        assert {f"{part}.{n}" for n in converted} == ours.keys()
        for name, value in converted.items():
            assert value == numbered[ours[f"{part}.{name}"]]


@pytest.fixture(scope="module")
def tiny_params(tmp_path_factory):
    """The tiny golden model, with a small text tower: its numbers play no part here."""
    folder = tmp_path_factory.mktemp("text")
    sizes = dict(num_hidden_layers=1, intermediate_size=64, vocab_size=64)
    CLIPTextConfig(hidden_size=768, num_attention_heads=12, **sizes).save_pretrained(folder)
    overrides = [*TINY, f"model.params.cond_stage_config.params.version={folder}"]
    return load_config(TrainConfig, [], overrides).model


@pytest.fixture(scope="module")
def stable_diffusion(tiny_params):
    """A file like Stable Diffusion's, of tiny networks: four channels in, nothing of LEGO."""
    model = LegoModel(tiny_params)
    state = to_released(Weights(model.state_dict()), model)
    for name, value in state.items():
        if name.startswith(("model.", "first_stage_model.")):
            state[name] = torch.from_numpy(np.array(tensor(name, tuple(value.shape), 0)))
    state[CONV_IN] = torch.from_numpy(np.array(tensor(CONV_IN, (32, 4, 3, 3), 0)))
    return {n: v for n, v in state.items() if not n.startswith(("projection", "self_attn"))}


OLD_NAMES = {
    r"mid_block\.attentions\.0\.to_(q|k|v)\.": "mid_block.attentions.0.old_\\1.",
    r"\.old_q\.": ".query.",
    r"\.old_k\.": ".key.",
    r"\.old_v\.": ".value.",
    r"mid_block\.attentions\.0\.to_out\.0\.": "mid_block.attentions.0.proj_attn.",
    r"^embeddings\.|^encoder\.layers|^final_layer_norm": "text_model.\\g<0>",
}


def with_old_names(path, **more):
    """As the published folder was written, years ago."""
    state = load_file(path) | more
    for pattern, name in OLD_NAMES.items():
        state = {re.sub(pattern, name, n): v for n, v in state.items()}
    save_file(state, path, metadata={"format": "pt"})
    return state


def as_diffusers_folder(state, params, folder):
    """What others publish: a UNet of four channels, no conditioner, names of old."""
    model = LegoModel(params)
    model.load_state_dict(weights_in("file", model, state, start=True).live, strict=False)
    narrow = bare_model(params).unet
    narrow.register_to_config(in_channels=4)
    narrow.conv_in = torch.nn.Conv2d(4, 32, 3, padding=1)
    values = model.unet.state_dict()
    values["conv_in.weight"] = values["conv_in.weight"][:, :4].contiguous()
    narrow.load_state_dict(values, assign=True)
    narrow.save_pretrained(folder / "unet")
    model.vae.save_pretrained(folder / "vae")
    old = with_old_names(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert {"encoder.mid_block.attentions.0.key.bias"} <= old.keys()
    model.text_encoder.save_pretrained(folder / "text_encoder")
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    old = with_old_names(folder / "text_encoder" / "model.safetensors", **positions)
    assert all(name.startswith("text_model.") for name in old)


def load_wanted(state, params):
    """What the file gives for the frozen parts, by this project's names."""
    found = weights_in("file", bare_model(params), state, start=True).live
    return {n: v for n, v in found.items() if n.startswith(("vae.", "text_encoder."))}


def write_start(form, state, params, folder):
    if form == "folder":
        as_diffusers_folder(state, params, folder)
        return folder
    path = folder / f"sd.{form}"
    if form == "safetensors":
        save_file({n: v.contiguous() for n, v in state.items()}, path)
    else:
        torch.save({"state_dict": state, "global_step": 3}, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("form", ["ckpt", "safetensors", "folder"])
def test_training_starts_from_stable_diffusion(form, stable_diffusion, tiny_params, tmp_path):
    path = write_start(form, stable_diffusion, tiny_params, tmp_path)
    model = LegoModel(tiny_params).eval()
    before = {n: v.clone() for n, v in model.conditioner.state_dict().items()}
    load_start(model, str(path))
    golden = np.load(DATA / "surgery.npz")
    weight = model.unet.conv_in.weight
    np.testing.assert_array_equal(weight, golden["conv_in_after_surgery"])
    assert not weight[:, 4:].any()
    z, other = inputs("surgery.z", 1, 4, 8, 8), torch.full((1, 4, 8, 8), 7.0)
    context = inputs("surgery.context", 1, 77, 768)
    eps = model.denoiser(torch.cat([z, other], dim=1), torch.tensor([300]), context)
    check(eps, golden, "eps_after_surgery", 1e-4)  # the tolerance of the tiny UNet
    for name, value in load_wanted(stable_diffusion, tiny_params).items():
        assert torch.equal(model.state_dict()[name], value), name
    # What stayed as it was is what the released code lists as missing, but the first convolution.
    names = released_names(model)
    kept = [names[f"conditioner.{n}"] for n in before]
    assert [CONV_IN, *sorted(kept)] == [UNTOUCHED[0], *sorted(UNTOUCHED[1:])]
    after = model.conditioner.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items())
    # The average of the training begins as what was loaded (released: `load_ema: false`).
    model.unet.requires_grad_(True)
    average = EMA(model, 0.9999).state_dict()
    assert all(torch.equal(average[f"unet.{n}"], v) for n, v in model.unet.state_dict().items())


def test_no_average_is_never_made_up(stable_diffusion, tiny_params):
    """The released code generates with a random average from such a file, silently."""
    model = LegoModel(tiny_params)
    conditioner = {
        stored_name(n).removeprefix("conditioner."): v
        for n, v in model.state_dict().items()
        if n.startswith("conditioner.")
    }
    state = stable_diffusion | conditioner
    state[CONV_IN] = torch.zeros(32, 8, 3, 3)
    with pytest.raises(EgoGenError, match="X.ckpt: holds no EMA; .*load_ema=false"):
        load_weights(model, state, use_ema=True, where="X.ckpt")
    load_weights(model, state, use_ema=False)
    assert torch.equal(model.unet.conv_out.bias, state["model.diffusion_model.out.2.bias"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("small"))


def test_one_error_lists_all_that_is_wrong(small, tmp_path):
    _, params, kinds = small
    model = LegoModel(params)
    state = to_released(kinds["unet"], model)
    bias = "model.diffusion_model.out.2.bias"
    del state["projection_img.bias"], state["model_ema.diffusion_modelout2weight"]
    state["projection_txt.weights"] = torch.zeros(1)
    state[bias] = torch.zeros(5)
    with pytest.raises(EgoGenError) as caught:
        load_weights(model, state, use_ema=True, where="X.ckpt")
    assert str(caught.value) == (
        "X.ckpt: missing: projection_img.bias, model_ema.diffusion_modelout2weight; "
        f"unexpected: projection_txt.weights; mis-shaped: {bias} (5,), expected (4,)"
    )
    own = to_own(kinds["unet"])
    own["ema.unet.other"] = own.pop("model.vae.quant_conv.bias")
    with pytest.raises(EgoGenError) as caught:
        load_weights(model, own, use_ema=True, where="Y.ckpt")
    assert str(caught.value) == (
        "Y.ckpt: missing: model.vae.quant_conv.bias; unexpected: ema.unet.other"
    )


@pytest.mark.parametrize("form", ["own", "released"])
def test_training_starts_from_the_live_weights_of_a_run(form, small, tmp_path):
    """Also from the released form, where averages stand in the conditioner's place."""
    _, params, kinds = small
    model = random_model(params, seed=5)
    weights = kinds["both"]
    state = to_own(weights) if form == "own" else to_released(weights, model)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    load_start(model, str(tmp_path / "last.ckpt"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights.live[name])


def test_half_of_an_average_is_refused(small):
    _, params, kinds = small
    state = to_own(kinds["both"])
    del state["ema.conditioner.projection_img.bias"]
    with pytest.raises(EgoGenError, match="missing: ema.conditioner.projection_img.bias$"):
        load_weights(LegoModel(params), state, use_ema=True)


def test_another_noise_schedule_is_refused(small):
    _, params, kinds = small
    model = LegoModel(params)
    state = to_released(kinds["unet"], model)
    state["betas"] = state["betas"] * 1.1
    with pytest.raises(EgoGenError, match="betas 0.000935 to 0.0132 in 1000 steps are not those"):
        load_weights(model, state, use_ema=True)


def test_names_of_the_text_tower_old_and_new(small):
    """One level less in files written with new transformers, position ids in those of old ones."""
    _, params, kinds = small
    model = LegoModel(params)
    state = to_released(kinds["none"], model)
    new = {n.replace("transformer.text_model.", "transformer."): v for n, v in state.items()}
    new.pop("cond_stage_model.transformer.embeddings.position_ids")
    assert len(new) == len(state) - 1 and POSITIONS in state
    one, two = (from_released(s, model, "file") for s in (state, new))
    assert_equal_weights(one, two)


def stands_in(module, kind):
    """A class of a library that the reader does not have."""
    made = type(kind, (), {"__module__": module})
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], kind, made)
    return made


def test_classes_that_the_training_code_pickled_are_not_needed(small, tmp_path):
    """Lightning wrote its callbacks by class, the configuration as objects (Stable Diffusion's and
    the released files have such)."""
    _, params, kinds = small
    state = to_released(kinds["unet"], LegoModel(params))
    callback = stands_in("old_lightning", "ModelCheckpoint")
    options = stands_in("old_omegaconf", "ListConfig")()
    options.content = {"f_max": [1.0]}
    content = {
        "epoch": 3,
        "callbacks": {callback: {"best_model_score": torch.tensor(1.0)}},
        "hyper_parameters": options,
        "state_dict": state,
    }
    torch.save(content, tmp_path / "new.ckpt")
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("old_lightning", "old_omegaconf"):
        del sys.modules[name]
    for path in sorted(tmp_path.iterdir()):
        found, notes = read_file(path)
        assert not notes and found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickled_code_is_not_executed(small, tmp_path):
    _, params, kinds = small
    state = to_released(kinds["unet"], LegoModel(params))
    mark = tmp_path / "executed"
    for place in ("state_dict", "beside"):
        content = {"state_dict": dict(state), "hyper_parameters": {}}
        inside = content["state_dict" if place == "state_dict" else "hyper_parameters"]
        inside["x"] = Payload(mark)
        torch.save(content, tmp_path / "bad.ckpt")
        with pytest.raises(EgoGenError, match="bad.ckpt: not a readable .*to posix.system"):
            read_weights(tmp_path / "bad.ckpt")
        assert not mark.exists()


def test_broken_folders_are_named(small, tmp_path):
    _, params, _ = small
    model = random_model(params)
    folder = tmp_path / "folder"
    LegoPipeline.from_model(model).save_pretrained(folder)
    load_start(random_model(params, 3), str(folder))
    weights = folder / "conditioner" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(EgoGenError, match="conditioner: not a readable FeatureConditioner"):
        load_start(model, str(folder))
    weights.write_bytes(content)
    state = load_file(weights)
    name = "encoders.text.projection.weight"
    state[f"{name}s"] = state.pop(name)
    save_file(state, weights, metadata={"format": "pt"})
    told = f"conditioner: missing: {name}; unexpected: {name}s"
    with pytest.raises(EgoGenError, match=told):
        load_start(model, str(folder))
    weights.write_bytes(content)
    index = (folder / "model_index.json").read_text()
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(EgoGenError, match="model_index.json: expected an object, found list"):
        load_start(model, str(folder))
    (folder / "model_index.json").write_text(index)
    shutil.rmtree(folder / "vae")
    with pytest.raises(EgoGenError, match="vae: not a readable AutoencoderKL"):
        load_start(model, str(folder))

"""Checkpoints of stage 2 as other tools leave them: wrapped, in half precision, with objects."""

import argparse
import datetime

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_model import random_model, write_small

from egogen import EgoGenError
from ldm.checkpoints.convert import bare_model, convert
from ldm.checkpoints.layouts import UPDATES, same_numbers, to_own, to_released
from ldm.checkpoints.load import load_start, read_file
from ldm.generate import load_model

UNET, COMPILED = "model.diffusion_model.", "model.diffusion_model._orig_mod."
ROWS = torch.arange(77)[None]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    _, params, kinds = write_small(tmp_path_factory.mktemp("small"))
    weights = kinds["unet"]
    return params, weights, to_released(weights, bare_model(params)), to_own(weights)


def assert_loads(path, params, weights, tolerance=0.0):
    """Into the model that generates: the EMA where there is one; and to start training from."""
    model = load_model(params, str(path), torch.device("cpu"))
    start = random_model(params, seed=5)
    load_start(start, str(path))
    for found, wanted in (
        (model.state_dict(), weights.live | weights.ema),
        (start.state_dict(), weights.live),
    ):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


def named(rule):
    return lambda state: {rule(name): value for name, value in state.items()}


def without(prefix):
    return named(lambda name: name.removeprefix(prefix))


def compiled_with_average(name):
    """What torch.compile leaves in both, as the released EMA takes the points out of its names."""
    name = name.replace(UNET, COMPILED)
    return name.replace("model_ema.diffusion_model", "model_ema.diffusion_model_orig_mod")


# Which state (False: released, True: of this project), what is done to it.
WRAPPED = {
    "data parallel": (False, lambda s: {"state_dict": named("module.{}".format)(s)}),
    "compiled": (False, lambda s: {"state_dict": named(lambda n: n.replace(UNET, COMPILED))(s)}),
    "compiled, average too": (False, lambda s: {"state_dict": named(compiled_with_average)(s)}),
    "data parallel of compiled": (False, named("module._orig_mod.{}".format)),
    "compiled of data parallel": (False, named("_orig_mod.module.{}".format)),
    "sharded": (False, named(lambda n: n.replace(UNET, UNET + "_fsdp_wrapped_module."))),
    "deepspeed": (False, lambda s: {"module": s, "global_steps": 3, "optimizer": None}),
    "deepspeed, data parallel": (False, lambda s: {"module": named("module.{}".format)(s)}),
    "model": (False, lambda s: {"model": s}),
    "model_state_dict": (False, lambda s: {"model_state_dict": s, "epoch": np.int64(3)}),
    "nested": (False, lambda s: {"model": {"state_dict": named("model.{}".format)(s)}}),
    "another key": (False, lambda s: {"generator": s, "optimizer": {"a": torch.ones(3)}}),
    "inside a model": (False, named("model.{}".format)),
    "peft": (False, named("base_model.model.{}".format)),
    "no first level": (False, without("model.")),
    "bare UNet": (False, without(UNET)),
    "own, data parallel": (True, lambda s: {"state_dict": named("module.{}".format)(s)}),
    "own, compiled": (True, named(lambda n: n.replace("unet.", "unet._orig_mod."))),
    "own, no level": (True, without("model.")),
    "own, deepspeed": (True, lambda s: {"module": s}),
    "buffers": (False, lambda s: s | dict.fromkeys(("logvar", "first_stage_model.loss.a"), ROWS)),
    "own, buffers": (True, lambda s: s | {"model.text_encoder.embeddings.position_ids": ROWS}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_of_other_tools(name, small, tmp_path):
    params, weights, released, own = small
    ours, change = WRAPPED[name]
    torch.save(change(own if ours else released), tmp_path / "a.ckpt")
    assert_loads(tmp_path / "a.ckpt", params, weights)


def test_wrapped_names_in_safetensors_and_converted(small, tmp_path):
    params, weights, released, _ = small
    state = {f"module.{name}": value.contiguous() for name, value in released.items()}
    save_file(state, tmp_path / "a.safetensors")
    assert_loads(tmp_path / "a.safetensors", params, weights)
    convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt", "released", params)
    again = read_file(tmp_path / "b.ckpt")[0]
    assert again.keys() == released.keys()
    assert all(torch.equal(again[name], value) for name, value in released.items())


BESIDE = {
    "step": {"global_step": np.int64(22_000)},
    "score": {"callbacks": {"ModelCheckpoint": {"best_model_score": np.float64(0.12)}}},
    "array": {"random_state": np.arange(3), "rng": np.random.get_state()},
    "settings": {"hyper_parameters": argparse.Namespace(lr=1e-4, at=datetime.date(2024, 1, 2))},
    "types": {"dtype": np.dtype("float32"), "precision": torch.float16, "size": torch.Size([3])},
}


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_trainers_keep_beside_the_weights(protocol, small, tmp_path):
    params, weights, released, _ = small
    for name, more in BESIDE.items():
        content = {"state_dict": released, "epoch": 3, **more}
        torch.save(content, tmp_path / f"{name}.ckpt", pickle_protocol=protocol)
        found, _ = read_file(tmp_path / f"{name}.ckpt")
        assert all(torch.equal(found[n], value) for n, value in released.items())
    assert_loads(tmp_path / "types.ckpt", params, weights)


def in_precision(state, dtype, counters=False):
    return {
        n: v.to(dtype) if v.is_floating_point() or (counters and n == UPDATES) else v
        for n, v in state.items()
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_in_another_precision(dtype, small, tmp_path):
    params, weights, released, own = small
    counted = {**released, UPDATES: torch.tensor(123_456, dtype=torch.int32)}
    states = {
        "released": in_precision(released, dtype),
        "all": in_precision(counted, dtype, counters=True),
        "and back": in_precision(in_precision(released, dtype), torch.float32),
        "own": in_precision(own, dtype),
    }
    for name, state in states.items():
        torch.save({"state_dict": state}, tmp_path / f"{name}.ckpt")
        assert_loads(tmp_path / f"{name}.ckpt", params, weights, tolerance=0.02)
        if name != "own":
            convert(tmp_path / f"{name}.ckpt", tmp_path / f"{name} 2.ckpt", "own", params)
            updates = read_file(tmp_path / f"{name} 2.ckpt")[1].get("ema_updates", 0)
            expected = 17 if name != "all" else 0 if dtype == torch.float16 else 123_456
            assert updates == pytest.approx(expected, rel=0.01)


def test_another_schedule_or_decay_is_seen_in_every_precision(small, tmp_path):
    params, _, released, _ = small
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        changed = in_precision(released | {"betas": released["betas"] * 1.03}, dtype)
        torch.save(changed, tmp_path / "a.ckpt")
        with pytest.raises(EgoGenError, match="betas .* are not those of the config"):
            load_model(params, str(tmp_path / "a.ckpt"), torch.device("cpu"))
    known = torch.tensor(0.9999)
    assert same_numbers(known.half(), known, 1e-6) and same_numbers(known.bfloat16(), known, 1e-6)
    assert not same_numbers(torch.tensor(0.999), known, 1e-6)
    assert not same_numbers(torch.ones(2), torch.ones(3), 1e-6)
    assert not same_numbers(torch.ones((), dtype=torch.int32), torch.ones(()), 1e-6)


def test_what_cannot_be_decided_is_said(small, tmp_path):
    params, _, released, _ = small
    told = {
        "holds weights of the same names under 'model' and 'module'": {
            "model": released,
            "module": released,
        },
        "both stand for betas": {**released, **named("module.{}".format)(released)},
        "holds no tensors but epoch": {"epoch": 3},
        "entry .* torch.int8, expected": {
            n: v.to(torch.int8) if v.ndim == 4 else v for n, v in released.items()
        },
    }
    for words, content in told.items():
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(EgoGenError, match=f"a.ckpt: .*{words}"):
            load_model(params, str(tmp_path / "a.ckpt"), torch.device("cpu"))

"""The one reader of weight files, and the one check of their names: what errors say."""

import argparse
import collections
import datetime
import enum
import functools
import io
import pathlib
import re
import tarfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from egogen import EgoGenError
from egogen.errors import LISTED
from egogen.weight_files import (
    check_names,
    fit_names,
    read_weight_file,
    shapes_of,
    tensors,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def read(path):
    return tensors(read_weight_file(path), path)


def assert_is_state(found):
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


WRAPPED = {
    "flat": STATE,
    "beside numbers": {**STATE, "epoch": 3, "args": {"lr": 0.1}, "name": "x", "ema": None},
    "state_dict": {"state_dict": STATE, "epoch": 3},
    "beside a tensor": {"state_dict": STATE, "best": torch.tensor(0.5)},
    "two levels": {"state_dict": {"model": STATE}},
    "deepspeed": {"module": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "another key": {"weights_of_step_5": STATE, "optimizer": {"state": {0: torch.ones(1)}}},
    "with an average": {"model": STATE, "ema": {n: v + 1 for n, v in STATE.items()}},
    "with the average of a callback": {
        "state_dict": STATE,
        "callbacks": {"EMA": {"state_dict": {n: v + 1 for n, v in STATE.items()}}},
    },
    "a default dictionary": {"state_dict": collections.defaultdict(int, STATE)},
    "a namespace": {"saved": argparse.Namespace(state_dict=STATE)},
    "parameters": {name: torch.nn.Parameter(value) for name, value in STATE.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_state_dict_is_found_behind_its_wrappers(name, tmp_path):
    for form in (True, False):
        torch.save(WRAPPED[name], tmp_path / "a.pth", _use_new_zipfile_serialization=form)
        found = read(tmp_path / "a.pth")
        assert_is_state(found)
        assert not any(value.requires_grad for value in found.values())


def test_a_network_that_was_saved_whole(tmp_path):
    network = torch.nn.Sequential()
    network.add_module("a", torch.nn.Linear(3, 2))
    network.load_state_dict(STATE)
    for content in (network, {"model": torch.nn.DataParallel(network), "epoch": 1}):
        torch.save(content, tmp_path / "a.pt")
        found = fit_names(read(tmp_path / "a.pt"), STATE.__contains__, "a.pt")
        assert_is_state(found)


def test_what_was_found_is_said(tmp_path):
    refused = {
        "holds no tensors but epoch, args, expected": {"epoch": 1, "args": {}},
        "the same names under 'model' and 'module', expected one": {
            "model": STATE,
            "module": STATE,
        },
        "the same names under 'a' and 'b', expected one": {"a": STATE, "b": STATE, "epoch": 1},
        "entry 'a.weight' is cpu torch.int8, expected numbers in floating point (neither": {
            "a.weight": torch.ones(2, 3, dtype=torch.int8)
        },
        "entry 'a.weight' is no tensor (_rebuild_sparse_tensor)": {
            **STATE,
            "a.weight": STATE["a.weight"].to_sparse(),
        },
        "entry 'a.weight' is meta": {"a.weight": STATE["a.weight"].to("meta")},
        "entry 'best' is no tensor (scalar), expected one": {**STATE, "best": np.float64(0.5)},
    }
    for words, content in refused.items():
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(EgoGenError, match=f"a.pth: .*{re.escape(words)}"):
            read(tmp_path / "a.pth")
    torch.save({"best": np.float64(0.5), **STATE}, tmp_path / "a.pth")
    assert_is_state(tensors(read_weight_file(tmp_path / "a.pth"), "a.pth", drop_others=True))
    with tarfile.open(tmp_path / "old.pth", "w") as file:
        file.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(EgoGenError, match="old.pth: not a readable .*a tar archive"):
        read(tmp_path / "old.pth")


class Colour(enum.Enum):
    RED = 1


class Settings(dict):
    """A trainer's own class: a mapping with attributes and slots of state."""

    def __reduce_ex__(self, _):
        return Settings, (), ({"lr": 0.1}, {"slot": 1}), iter([1, 2]), iter({"a": 1}.items())

    def extend(self, items):
        raise AssertionError("executed")

    __setstate__ = append = extend


BESIDE = {
    "numpy numbers": [np.int64(3), np.float64(0.5), np.float16(1), np.bool_(True), np.str_("a")],
    "numpy arrays": [np.arange(3), np.ones((2, 2), order="F"), np.array([{}], dtype=object)],
    "numpy types": [np.dtype("float32"), np.dtype([("a", "<i4")]), np.float32, np.ma.ones(2)],
    "random states": [np.random.get_state(), np.random.default_rng(0), np.random.RandomState(0)],
    "torch": [torch.float16, torch.Size([2]), torch.device("cpu"), torch.Generator().get_state()],
    "paths and times": [pathlib.Path("/a"), datetime.datetime.now(), datetime.timedelta(1)],
    "settings": [argparse.Namespace(a=1), OmegaConf.create({"a": [1, {"b": 2}]})],
    "collections": [collections.Counter("ab"), collections.deque([1]), {1}, frozenset({2})],
    "functions": [functools.partial(print, "a", end=""), print, len, STATE.get, range(3), slice(2)],
    "classes": [Colour.RED, {Colour.RED: 1}, Settings(), 1j, bytearray(b"a"), b"a"],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_weights_is_no_obstacle(name, protocol, tmp_path):
    content = {"state_dict": STATE, "beside": BESIDE[name], "more": dict(enumerate(BESIDE[name]))}
    for form in (True, False):
        torch.save(
            content,
            tmp_path / "a.ckpt",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=form,
        )
        assert_is_state(read(tmp_path / "a.ckpt"))


def test_every_number_type_and_form_of_a_tensor(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        **{
            f"{kind}.weight": base.to(getattr(torch, kind))
            for kind in ("float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")
        },
        **{"turned.weight": base.T, "part.weight": base[1:, 1:], "empty.weight": base[:0]},
        **{"number": torch.tensor(3), "flags": torch.ones(2, dtype=torch.bool)},
        **{"same.weight": base, "shared.weight": base, "uint16": torch.ones(2, dtype=torch.uint16)},
    }
    for form in (True, False):
        if not form:  # which torch itself cannot read in its old format
            state = {n: v for n, v in state.items() if not n.startswith(("float8", "uint16"))}
        torch.save(state, tmp_path / "a.bin", _use_new_zipfile_serialization=form)
        found = read(tmp_path / "a.bin")
        for name, value in state.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name].double(), value.double()), name


def test_the_safety_that_torch_offers_does_not_refuse_this(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    torch.save(STATE, tmp_path / "a.pth")
    assert_is_state(read(tmp_path / "a.pth"))


NAMES = ("model.unet.a", "model.unet.b", "head.w")


@pytest.mark.parametrize(
    "rule",
    [
        "{}",
        "module.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "base_model.model.{}",
        "model.{}",
        "state_dict.net.{}",
        "_fsdp_wrapped_module.{}",
    ],
)
def test_names_without_what_wrappers_add(rule):
    state = {rule.format(name): torch.ones(1) for name in NAMES}
    assert fit_names(state, NAMES.__contains__, "x").keys() == set(NAMES)
    inside = {rule.format(name).replace("unet.", "unet._orig_mod."): 1 for name in NAMES}
    assert fit_names(inside, NAMES.__contains__, "x").keys() == set(NAMES)


def test_levels_that_are_missing_and_what_is_computed():
    found = fit_names(
        {"unet.a": 1, "b": 2, "module.head.w": 3, "rotary_emb.inv_freq": 4, "module.other": 5},
        NAMES.__contains__,
        "x",
        levels=("model.", "model.unet."),
    )
    assert found == {"model.unet.a": 1, "model.unet.b": 2, "head.w": 3, "other": 5}
    told = "x: head.w and module.head.w both stand for head.w, expected one"
    with pytest.raises(EgoGenError, match=told):
        fit_names({"head.w": 1, "module.head.w": 2}, NAMES.__contains__, "x")


def test_both_formats_are_maps_of_their_files(tmp_path):
    state = {"w": torch.arange(1000.0)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.bin")
    for name in ("a.safetensors", "a.bin"):
        found = read_weight_file(tmp_path / name)["w"]
        assert torch.equal(found, state["w"])
        with open("/proc/self/maps") as maps:
            assert str(tmp_path / name) in maps.read(), name


def test_what_cannot_be_read_is_one_line(tmp_path):
    for name, words in {
        "none.ckpt": "no such weight file",
        "cut.safetensors": "not a readable weight file",
        "text.ckpt": "not a readable weight file",
    }.items():
        if "none" not in name:
            (tmp_path / name).write_text("<html>\nnot found</html>")
        with pytest.raises(EgoGenError, match=f"{name}: {words}") as error:
            read_weight_file(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(EgoGenError, match="no such weight file"):
        read_weight_file(tmp_path)


def test_names_are_compared_in_one_wording():
    expected = shapes_of({"a": torch.zeros(2), "b": torch.zeros(3, 4), "c": torch.zeros(())})
    check_names(expected, expected, "x")
    found = {"b": (4, 3), "c": (), "d": (1,)}
    wrong = r"^x: missing: a; unexpected: d; mis-shaped: b \(4, 3\), expected \(3, 4\)$"
    with pytest.raises(EgoGenError, match=wrong):
        check_names(found, expected, "x")
    check_names({**expected, "d": (1,)}, expected, "x", unexpected=True)
    many = {f"n{number}": (1,) for number in range(LISTED + 3)}
    with pytest.raises(EgoGenError, match=f"n{LISTED - 1} and 3 more$"):
        check_names({}, many, "x")

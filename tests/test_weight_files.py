"""The one reader of weight files, and the one check of their names: what errors say."""

import pytest
import torch
from safetensors.torch import save_file

from egogen import EgoGenError
from egogen.weight_files import LISTED, check_names, read_weight_file, shapes_of, tensors


def test_a_state_dict_is_found_behind_its_wrappers(tmp_path):
    path, state = tmp_path / "a.pth", {"w": torch.arange(3.0)}
    torch.save({"state_dict": {"model": state}, "epoch": 3}, path)
    found = tensors(read_weight_file(path), path, ("state_dict", "model"))
    assert found.keys() == {"w"} and torch.equal(found["w"], state["w"])
    with pytest.raises(EgoGenError, match="a.pth: entry 'state_dict' is no tensor, expected"):
        tensors(read_weight_file(path), path)
    with pytest.raises(EgoGenError, match="a.pth: holds no tensors, expected the weights"):
        tensors(read_weight_file(path), path, drop_others=True)
    torch.save({**state, "epoch": 3}, path)
    assert tensors(read_weight_file(path), path, drop_others=True).keys() == {"w"}


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

"""What a cache of the encoders' outputs belongs to: each part of it, changed by itself."""

import json
import os

import pytest
import torch
from small_training import CONFIG, write_run

from ldm.config import TrainConfig, load_config
from ldm.model import LegoModel
from ldm.split import open_training
from ldm.training.encoder_cache import identity


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("identity")
    return root, write_run(root)


def found(overrides, *more, model=None, part="train", dtype="float32") -> dict:
    config = load_config(TrainConfig, [str(CONFIG)], [*overrides, *more])
    torch.manual_seed(0)
    return identity(open_training(config)[part], model or LegoModel(config.model), dtype)


def changed(one: dict, other: dict) -> set[str]:
    return {name for name in one if one[name] != other[name]}


def test_what_a_cache_belongs_to(run):
    root, overrides = run
    before = found(overrides)
    assert before == found(overrides, "data.params.batch_size=7", "model.base_learning_rate=1")
    for expected, more in (
        ("resolution", "data.params.train.params.res=64"),
        ("both_flips", "data.params.train.params.flip_prob=0"),
        ("content", "data.params.train.params.text_prompt_key=action"),
    ):
        assert changed(before, found(overrides, more)) == {expected}
    assert changed(before, found(overrides, dtype="float16")) == {"dtype"}
    assert "content" in changed(before, found(overrides, part="validation"))
    torch.manual_seed(0)
    model = LegoModel(load_config(TrainConfig, [str(CONFIG)], overrides).model)
    for part, counts in (("vae", True), ("text_encoder", True), ("unet", False)):
        weight = next(p for p in getattr(model, part).parameters() if p.ndim > 1)
        with torch.no_grad():
            kept = weight.clone()
            weight.view(-1)[0] += 1
            expected = {"encoders"} if counts else set()
            assert changed(before, found(overrides, model=model)) == expected, part
            weight.copy_(kept)


@pytest.mark.parametrize("which", ["image_0", "image_1"])
def test_a_frame_that_changed(run, which):
    """By its size or its time of change; the same name and the same text."""
    root, overrides = run
    content = json.loads((root / "ego4d_train.json").read_text())
    entry = next(iter(next(iter(content.values())).values()))
    path, before = root / "EgoGen/ego4d.fho/train" / entry[which], found(overrides)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert changed(before, found(overrides)) == {"content"}
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed(before, found(overrides)) == {"content"}
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert found(overrides) == before

"""The cache of the frozen encoders: same numbers, chunks, and what is refused."""

import pytest
import torch
from small_training import CONFIG, losses, train_run, write_run

from egogen import EgoGenError
from ldm.cache import main as cache_main
from ldm.checkpoints.load import load_start, read_weights
from ldm.config import TrainConfig, load_config
from ldm.model import FROZEN_PARTS, LegoModel
from ldm.split import open_training
from ldm.training import encoder_cache
from ldm.training.encoder_cache import EncoderCache
from ldm.training.module import LegoTraining
from ldm.training.run import build_data


@pytest.fixture(scope="module")
def run_overrides(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("cached"))


@pytest.fixture(scope="module")
def cache(run_overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    cache_main(["--config", str(CONFIG), "--out", str(folder), *run_overrides])
    return folder


def load(overrides, *more):
    config = load_config(TrainConfig, [str(CONFIG)], [*overrides, *more])
    model = LegoModel(config.model)
    load_start(model, config.model.ckpt_path)
    return config, model


@pytest.mark.parametrize("flip", [0, 1])
def test_moments_and_texts_of_both_flips(run_overrides, cache, flip):
    """Item by item what the encoders give for the frames as training sees them."""
    always = f"data.params.train.params.flip_prob={flip or 1e-9}"
    config, model = load(run_overrides, always)
    plain = build_data(open_training(config), model, 0, None, True)[0]
    cached = build_data(open_training(load(run_overrides, always)[0]), model, 0, cache, True)[0]
    for index in range(len(plain)):
        expected, found = plain[0, index], cached[0, index]
        for name in ("source", "edited"):
            moments = model.encode_moments(expected[name][None])[0]
            torch.testing.assert_close(found[name], moments, rtol=1e-4, atol=1e-4)
        text = model.encode_text([expected["prompt"]])[0]
        torch.testing.assert_close(found["prompt"], text, rtol=1e-4, atol=1e-4)
        assert torch.equal(found["noise"], expected["noise"]) and found["t"] == expected["t"]


def test_the_cache_gives_the_same_loss(run_overrides, cache, tmp_path):
    more = ["lightning.trainer.max_steps=2", "lightning.trainer.check_val_every_n_epoch=1"]
    undisturbed = train_run(run_overrides, tmp_path, "undisturbed", *more)
    kept = f"data.params.cache_path={cache}"
    cached = train_run(run_overrides, tmp_path, "cached", *more, kept)
    for place, loss in losses(undisturbed).items():
        assert losses(cached)[place] == pytest.approx(loss, rel=1e-4), place
    weights = read_weights(cached / "checkpoints" / "last.ckpt")
    assert weights.keys() == read_weights(undisturbed / "checkpoints" / "last.ckpt").keys()
    shard = next((cache / "train").glob("shard_*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(EgoGenError, match="missing or cut short; run python -m ldm.cache again"):
        train_run(run_overrides, tmp_path, "broken", f"data.params.cache_path={cache}")
    cache_main(["--config", str(CONFIG), "--out", str(cache), *run_overrides])
    other = "data.params.train.params.text_prompt_key=action"
    with pytest.raises(EgoGenError, match="made with content"):
        train_run([*run_overrides, other], tmp_path, "o", f"data.params.cache_path={cache}")


def test_chunks_make_the_whole(run_overrides, cache, tmp_path, monkeypatch):
    """Jobs of any order and number; what one has not made yet is missed by name."""
    monkeypatch.setattr(encoder_cache, "SHARD", 1)
    words = ["--config", str(CONFIG), "--out", str(tmp_path), "--n_chunk", "2", *run_overrides]
    cache_main([*words, "--chunk_idx", "2"])
    config, model = load(run_overrides)
    split = open_training(config)["train"]
    with pytest.raises(EgoGenError, match="shard_00000.*missing or cut short"):
        EncoderCache(tmp_path / "train", split, model)
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("shard_*"))]
    cache_main([*words, "--chunk_idx", "1"])
    cache_main([*words, "--chunk_idx", "2"])  # finished shards are kept
    assert set(before) <= {path.stat().st_mtime_ns for path in tmp_path.rglob("shard_*")}
    assert all(
        len(list((tmp_path / part).glob("shard_*"))) == len(split.items)
        for part in ("train", "validation")
    )
    chunked = EncoderCache(tmp_path / "train", split, model)
    monkeypatch.undo()
    whole = EncoderCache(cache / "train", split, model)
    for index in range(len(split.items)):
        monkeypatch.setattr(encoder_cache, "SHARD", 1)
        found = chunked.read(index, flip=True)
        monkeypatch.undo()
        expected = whole.read(index, flip=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    with pytest.raises(EgoGenError, match="chunk index 3: expected 1 to 2"):
        cache_main([*words, "--chunk_idx", "3"])


def test_the_encoders_leave_the_device(run_overrides):
    """While a cache stands in for them they are no part of the module, but of its checkpoints."""
    config, model = load(run_overrides)
    module = LegoTraining(model, config.optimizer, config.lightning, seed=0, cached=True)
    frozen = tuple(f"model.{part}." for part in FROZEN_PARTS)
    assert not any(name.startswith(frozen) for name in module.state_dict())
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert any(name.startswith(frozen) for name in checkpoint["state_dict"])

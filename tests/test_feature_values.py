"""Which values a feature store takes, which file of its shards holds, what its projector does."""

import math
import time

import numpy as np
import pytest
import torch

from egogen.errors import EgoGenError
from egogen.features.projector import Projector, keep_projector, read_projector
from egogen.features.shards import ShardReader, ShardWriter
from egogen.features.store import load_feature, open_store, write_feature

NAME = "clip/0/frame.jpg"


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan, -np.nan, 70_000.0, -70_000.0])
@pytest.mark.parametrize("place", [0, -1])
def test_only_finite_half_precision_is_written_and_read(tmp_path, wrong, place):
    rows = np.linspace(-65_504, 65_504, 24, dtype=np.float32).reshape(4, 6)
    write_feature(tmp_path, NAME, rows)  # the largest numbers of half precision are well
    assert np.array_equal(open_store(tmp_path).read(NAME), rows.astype(np.float16))
    rows.flat[place] = wrong
    with pytest.raises(EgoGenError, match="NaN or infinity"):
        write_feature(tmp_path, NAME, rows)
    if not math.isfinite(wrong):
        for kind in (np.float16, np.float32):
            np.save(tmp_path / "other.npy", rows.astype(kind))
            with pytest.raises(EgoGenError, match="other.npy.*NaN or infinity"):
                load_feature(tmp_path / "other.npy")


def test_what_is_written_later_holds_though_the_clock_is_set_back(tmp_path, monkeypatch):
    writer, now = ShardWriter(tmp_path, "1-of-1", shard=4), time.time_ns()
    for number in range(3):
        monkeypatch.setattr(time, "time_ns", lambda number=number: now - number * 10**9)
        writer.write({NAME: np.full((1, 2), number, np.float16)})
    assert len(list(tmp_path.iterdir())) == 3
    assert (ShardReader(tmp_path).read(NAME) == 2).all()
    writer.join()
    assert len(list(tmp_path.iterdir())) == 1
    assert (ShardReader(tmp_path).read(NAME) == 2).all()


def projector(layers: int, seed: int = 0) -> Projector:
    draw = np.random.RandomState(seed).standard_normal
    sizes = [(5, 3), (4, 5)][:layers]
    state = {}
    for number, (out, inside) in enumerate(sizes, 1):
        state[f"linear_{number}.weight"] = torch.from_numpy(draw((out, inside))).float()
        state[f"linear_{number}.bias"] = torch.from_numpy(draw(out)).float()
    return Projector(state, "test")


def test_two_layers_have_the_exact_gelu_between(tmp_path):
    """x times the normal distribution's own function, as in LLaVA-1.5; not its tanh formula."""
    made = projector(2)
    rows = np.random.RandomState(1).standard_normal((7, 3))
    weights = {name: value.double().numpy() for name, value in made.state.items()}
    inner = rows @ weights["linear_1.weight"].T + weights["linear_1.bias"]
    share = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))(inner)
    expected = (inner * share) @ weights["linear_2.weight"].T + weights["linear_2.bias"]
    found = made(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_store_keeps_its_projector(tmp_path):
    keep_projector(tmp_path, projector(1))
    keep_projector(tmp_path, projector(1))
    for other in (projector(1, seed=1), projector(2)):
        with pytest.raises(EgoGenError, match="another model's projector"):
            keep_projector(tmp_path, other)
    assert read_projector(tmp_path).same_as(projector(1))

"""The bench of chains: on models that have learnt nothing, and on the rendered frames."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import params_of, random_weights
from vllm_tiny import write_released

from egogen.errors import EgoGenError
from ldm.checkpoints.layouts import to_own
from mini.world.clips import Clip
from mini.world.scene import after

KEPT = [*sys.path]
chains = importlib.import_module("bench.chains")
sys.path[:] = KEPT  # a script puts the project where this folder stands

CONFIG = Path(__file__).parents[1] / "configs" / "generate_mini.yaml"
REQUEST = {"seed": 0, "pairs": 6, "val_pairs": 3, "actions_per_clip": 3, "datasets": ["ego4d"]}
FIGURES = ("done", "things", "gain", "from_rendered", "renderer")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the bench reads of a run's folder, and the overrides of its small models."""
    root = tmp_path_factory.mktemp("run")
    overrides = [f"model.params.conditioner.{k}" for k in ("feature_dim=64", "image_rows=256")]
    checkpoints = root / "logs" / "description_image_text" / "checkpoints"
    checkpoints.mkdir(parents=True)
    weights = random_weights(params_of(CONFIG, *overrides), ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights)}, checkpoints / "last.ckpt")
    write_released(root / "vllm")
    (root / "data").mkdir()
    (root / "data" / "mini.json").write_text(json.dumps({"request": REQUEST}))
    return root, [*overrides, "inference.steps=1", "inference.batch_size=2"]


def test_the_bench_prints_a_row_a_position(run, capsys):
    root, overrides = run
    chains.main(["--run", str(root), "--limit", "3", *overrides])
    found = json.loads(capsys.readouterr().out)
    assert [row["position"] for row in found["rows"]] == [1, 2, 3, 4]
    for row in found["rows"]:
        assert row["n"] == 3 and row["renderer"] == 1 and row["renderer_ci95"] == [1, 1]
        assert row["done"] == row["from_rendered"] == 0  # noise is no kitchen
        assert {name for name in row if name.endswith("ci95")} == {f"{n}_ci95" for n in FIGURES}
        assert 0 <= row["things"] < 1 and isinstance(row["gain"], float)


def test_the_oracle_finds_every_action_of_a_rendered_chain_done(run, monkeypatch):
    """The stages give the rendered frames; nothing of what they made is mixed up."""
    found = chains.chains(run[0], 6)
    frames = {id(each.rendered[k]): each.rendered[k + 1] for each in found for k in range(4)}

    class Perfect:
        class config:
            class inference:
                batch_size = 4

        def frames(self, photos, labels, names):
            return [chains.Frame(frames[id(photo)], "", "") for photo in photos]

    for k in range(4):
        row = chains.measure(Perfect(), k, found)
        assert all(row[name] == 1 for name in ("done", "things", "from_rendered", "renderer"))
        assert row["gain"] > 20
    assert all(each.made == each.rendered for each in found)


def test_chains_are_possible_and_each_action_changes_something():
    count = 0
    for index in range(40):
        state = Clip(0, "ego4d", "val", index, 3, 3).scene.state
        actions = chains.draw(np.random.default_rng(index), state)
        again = chains.draw(np.random.default_rng(index), state)
        assert actions == again and (actions is None or len(actions) == 4)
        for action in actions or ():
            then = after(state, action)
            assert then.things != state.things and state.things[action.object].kind
            state, count = then, count + 1
    assert count >= 40


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(EgoGenError, match="last.ckpt: no such checkpoint"):
        chains.main(["--run", str(tmp_path)])

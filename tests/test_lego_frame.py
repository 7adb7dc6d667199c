"""Chains of actions: a frame each, every one from the frame before."""

import gc
import io
import json
import weakref
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from small_dataset import picture
from small_model import params_of, random_weights, write_config
from vllm_tiny import write_released

import lego.stages
from egogen.errors import EgoGenError
from ldm.checkpoints.layouts import to_own
from lego.frame import main

ACTIONS = ("open the jar", "pick up the mug", "cut the apple")
TOO_LONG = "cut it and " * 3000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Words of the command that name tiny models and a photograph."""
    root = tmp_path_factory.mktemp("models")
    overrides = [f"model.params.conditioner.{k}" for k in ("feature_dim=64", "image_rows=256")]
    config = write_config(root)
    weights = random_weights(params_of(config, *overrides), ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights)}, root / "frame.ckpt")
    picture(3, (90, 60)).save(root / "photo.png")
    words = ["--vllm", write_released(root / "vllm"), "--ldm", root / "frame.ckpt"]
    words += ["--config", config, "--image", root / "photo.png", "--device", "cpu"]
    return [
        *map(str, words),
        "--max-new-tokens",
        "4",
        "--seed",
        "7",
        "data.params.res=32",
        *overrides,
    ]


def run(models, out: Path, *actions: str, more=()) -> int:
    return main([*models, "--out", str(out), *(f"--action={each}" for each in actions), *more])


@pytest.fixture(scope="module")
def chain(models, tmp_path_factory):
    """Folder of a chain that the command made, and what it printed."""
    folder = tmp_path_factory.mktemp("chain")
    with redirect_stdout(io.StringIO()) as printed:
        assert run(models, folder / "mug.png", *ACTIONS) == 0
    return folder, printed.getvalue()


def test_a_chain_writes_a_numbered_frame_and_its_record_for_each_action(chain, models):
    folder, printed = chain
    names = [f"mug-{k}.{kind}" for k in (1, 2, 3) for kind in ("json", "png")]
    assert sorted(path.name for path in folder.iterdir()) == names
    records = [json.loads((folder / f"mug-{k}.json").read_text()) for k in (1, 2, 3)]
    assert [record["action"] for record in records] == [*ACTIONS]
    assert [record["seed"] for record in records] == [7, 8, 9]
    photo = models[models.index("--image") + 1]
    before = [photo, str(folder / "mug-1.png"), str(folder / "mug-2.png")]
    assert [record["source"] for record in records] == before
    assert {record["image"] for record in records} == {photo}
    lines = printed.splitlines()
    assert [line.split(":")[0] for line in lines] == [*ACTIONS, *["written"] * 3]
    assert lines[0] == f"{ACTIONS[0]}: {records[0]['description']}"
    assert lines[-1] == f"written: {folder / 'mug-3.png'} (72x48), mug-3.json"


def test_the_first_frame_is_that_of_the_action_alone(chain, models, tmp_path):
    assert run(models, tmp_path / "one.png", ACTIONS[0]) == 0
    assert (tmp_path / "one.png").read_bytes() == (chain[0] / "mug-1.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "one.png"]


def test_a_record_says_how_its_frame_is_made_alone(chain, models, tmp_path):
    """The same seed as the frame before would repeat its noise."""
    record = json.loads((chain[0] / "mug-2.json").read_text())
    source = ["--image", record["source"]]
    for seed, same in ((record["seed"], True), (7, False)):
        out = tmp_path / f"{seed}.png"
        run(models, out, record["action"], more=[*source, "--seed", str(seed)])
        assert (out.read_bytes() == (chain[0] / "mug-2.png").read_bytes()) is same


def test_a_chain_is_made_from_frames_before_jpeg(chain, models, tmp_path):
    run(models, tmp_path / "a.png", *ACTIONS[:2])
    run(models, tmp_path / "b.jpg", *ACTIONS[:2], more=["inference.jpeg_quality=5"])
    assert (tmp_path / "a-2.png").read_bytes() == (chain[0] / "mug-2.png").read_bytes()
    records = [json.loads((tmp_path / name).read_text()) for name in ("a-2.json", "b-2.json")]
    assert records[0]["description"] == records[1]["description"]
    run(models, tmp_path / "c.png", *ACTIONS[:2], more=["inference.jpeg_quality=5"])
    assert (tmp_path / "c-2.png").read_bytes() == (tmp_path / "a-2.png").read_bytes()


@pytest.mark.parametrize("actions", [ACTIONS[:1], ACTIONS])
def test_stages_are_loaded_once_and_stage_1_goes_before_stage_2_comes(
    actions, models, tmp_path, monkeypatch
):
    load_describer, load_model = lego.stages.load_describer, lego.stages.load_model
    describers, there = [], []

    def describer(*words, **options):
        loaded = load_describer(*words, **options)
        describers.append(weakref.ref(loaded))
        return loaded

    def model(*words):
        gc.collect()
        there.append(describers[-1]() is not None)
        return load_model(*words)

    monkeypatch.setattr(lego.stages, "load_describer", describer)
    monkeypatch.setattr(lego.stages, "load_model", model)
    assert run(models, tmp_path / "mug.png", *actions) == 0
    assert len(describers) == 1 and there == [len(actions) > 1]


def test_what_was_made_stays_when_a_later_frame_fails(chain, models, tmp_path, capsys):
    assert run(models, tmp_path / "mug.png", ACTIONS[0], TOO_LONG, ACTIONS[2]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mug-1.json", "mug-1.png"]
    assert (tmp_path / "mug-1.png").read_bytes() == (chain[0] / "mug-1.png").read_bytes()
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("written: ")
    (line,) = [line for line in printed.err.splitlines() if "not generated" in line]
    assert line.startswith("not generated: action 2 of 3, 'cut it and") and "at most" in line


def test_a_chain_whose_first_frame_fails_leaves_nothing(models, tmp_path, capsys):
    with pytest.raises(EgoGenError, match="expected at most"):
        run(models, tmp_path / "mug.png", TOO_LONG, ACTIONS[0])
    with pytest.raises(EgoGenError, match="names no action"):
        run(models, tmp_path / "mug.png", ACTIONS[0], "#C C")
    assert not [*tmp_path.iterdir()] and not capsys.readouterr().out.strip()


def test_no_frame_takes_the_photographs_place(models, tmp_path):
    photo = tmp_path / "mug-2.png"
    picture(3, (90, 60)).save(photo)
    before = photo.read_bytes()
    with pytest.raises(EgoGenError, match="mug-2.png: is the photograph itself"):
        run(models, tmp_path / "mug.png", *ACTIONS, more=["--image", str(photo)])
    assert photo.read_bytes() == before and [*tmp_path.iterdir()] == [photo]

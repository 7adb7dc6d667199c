"""The starting point of the mini world: labels and texts of scenes, and the folder written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import write_world

from llava.checkpoints.load import load
from llava.image_processing import ImageProcessor
from mini.start.vllm import main
from mini.start.vllm_pretrain import scene_pixels
from mini.start.vllm_scenes import (
    KIND_NAMES,
    SPOTS,
    caption,
    mirror,
    patch_labels,
    questions,
    read_scenes,
)
from mini.world.texts import parse_description

GRID = 16
TINY = "--vision-steps 2 --language-steps 4"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def scenes(root):
    return read_scenes(root, ["ego4d"])


def test_one_scene_a_clip_and_labels_for_all_its_things(scenes):
    assert len(scenes) == 5
    for scene in scenes:
        kinds, spots, states = patch_labels(scene, GRID)
        assert set(np.unique(kinds)) == {0} | {1 + KIND_NAMES.index(kind) for kind in scene.things}
        for kind in scene.things:
            there = kinds == 1 + KIND_NAMES.index(kind)
            assert set(spots[there]) == {1 + SPOTS.index(scene.spot(kind))}
        assert ((kinds > 0) == (spots > 0)).all() and ((kinds > 0) == (states > 0)).all()


def test_mirrored_scenes(scenes):
    for scene in scenes:
        other = mirror(scene)
        assert mirror(other).things.keys() == scene.things.keys()
        for kind in scene.things:
            assert other.spot(kind).split()[:-1] == scene.spot(kind).split()[:-1]
            assert {other.spot(kind).split()[-1], scene.spot(kind).split()[-1]} == {"left", "right"}
        # Centres of patches lie symmetrically, so the labels of the kinds are flipped exactly.
        kinds, flipped = patch_labels(scene, GRID)[0], patch_labels(other, GRID)[0]
        np.testing.assert_array_equal(flipped, kinds[:, ::-1])
    pixels = scene_pixels([scenes[0], mirror(scenes[0])], ImageProcessor(64, "squeeze"))
    assert torch.equal(pixels[1], pixels[0].flip(-1))


def test_captions_and_questions_tell_the_truth(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes:
        _, answer = caption(scene, rng)
        parts = answer.removesuffix(".").split(", ")
        assert len(parts) == len(scene.things)
        for kind in scene.things:
            (part,) = [part for part in parts if part.startswith(f"{kind} ")]
            assert part.removeprefix(f"{kind} ").split()[0] == scene.spot(kind).split()[-1]
        turns = questions(scene, rng, len(scene.things))
        assert len(turns) == 2 * (1 + len(scene.things))
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            if question.startswith(("Which hand", "How does")):
                kind = next(kind for kind in scene.things if f"the {kind}" in question)
                said = parse_description(answer)
                assert said["object"] == kind and said["hand"] == scene.spot(kind).split()[-1]


def test_base_is_a_checkpoint_like_the_shipped_one(root, tmp_path):
    main(["--dataset-root", str(root), "--name", "ego4d", "--out", str(tmp_path), *TINY.split()])
    shipped = Path(__file__).parents[1] / "configs" / "mini" / "vllm"
    for folder in (tmp_path, shipped):
        loaded = load(folder, device="cpu")
        assert loaded.model.patches == GRID**2
        assert loaded.model.config.text_config.hidden_size == 96
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in shipped.iterdir()}

"""Frames, texts and features of the small released dataset, as training and generation see them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from released_model import DATA, check

from ldm.config import TrainConfig, load_config
from ldm.data import TrainingPairs, read_condition
from ldm.images import read_pixels
from ldm.split import open_split

GOLDEN = np.load(DATA / "dataset.npz")
FACTS = json.loads((DATA / "dataset.json").read_text())
JPEG = 2 * 2 / 255  # decoders differ by up to 2 levels of 255; pixels span 2


def settings(*overrides):
    part = "data.params.train.params."
    folder = DATA / "dataset"
    lines = [
        "model.params.conditioner.feature_dim=16",
        f"{part}data_path={folder}/frames",
        f"{part}edit_path={folder}/edits.json",
        f"{part}additional_cond_path.llava_image={folder}/features_small/image",
        f"{part}additional_cond_path.llava_text={folder}/features_small/text",
    ]
    config = load_config(TrainConfig, [], [*lines, *(part + line for line in overrides)])
    return open_split(config.data.train, config.model.conditioner.features)


@pytest.mark.parametrize("flip", [0, 1])
def test_training_items(flip):
    split = settings(f"flip_prob={flip}")
    pairs = TrainingPairs(split, timesteps=1000, latent_shape=(4, 32, 32), seed=0)
    assert len(pairs) == len(FACTS["order"])
    for i in range(len(pairs)):
        item = pairs[0, i]
        np.testing.assert_array_equal(item["features"]["image"], GOLDEN[f"train/{i}/llava_image"])
        np.testing.assert_array_equal(item["features"]["text"], GOLDEN[f"train/{i}/llava_text"])
        for name in ("edited", "source"):
            if f"train/flip{flip}/{i}/{name}" in GOLDEN:
                check(item[name], GOLDEN, f"train/flip{flip}/{i}/{name}", JPEG)


def test_items_of_generation():
    split = settings()
    found = split.items
    assert [list(item.entry.key.split("/")) for item in found] == FACTS["order"]
    for i, (item, fact) in enumerate(zip(found, FACTS["eval"], strict=True)):
        condition = read_condition(item, split)
        check(condition["pixels"], GOLDEN, f"eval/{i}/image_0", JPEG)
        assert condition["prompt"] == fact["edit"]
        assert fact["image_0_path"].endswith(item.entry.image_0)
        assert fact["image_1_path"].endswith(item.entry.image_1)


def test_label_as_prompt_without_features():
    split = settings("text_prompt_key=action")
    split = open_split(split.data, {})
    condition = read_condition(split.items[0], split)
    assert condition["prompt"] == FACTS["eval_without_features"]["edit"]
    assert set(condition) == {"pixels", "prompt", "features", "stores"}
    assert condition["features"] == condition["stores"] == {}


def test_turned_and_grey_frames(tmp_path):
    """A frame that EXIF turns is upright, a grey one has three equal channels."""
    upright = Image.open(next((DATA / "dataset" / "frames").rglob("*.jpg"))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    upright.convert("L").save(tmp_path / "grey.png")
    expected = read_pixels(tmp_path / "upright.png", 64)
    assert torch.equal(read_pixels(tmp_path / "turned.png", 64), expected)
    grey = read_pixels(tmp_path / "grey.png", 64)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])

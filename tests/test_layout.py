"""Released folders are found by the names that each source gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from egogen import check, layout
from egogen.settings import stage_1_paths
from ldm.config import GenerateConfig, TrainConfig, load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MODEL = "llava-llama-2-13b-chat-forecasting-finetune"
STABLE = "stable_diffusion/models/ldm/stable-diffusion-v1"


@pytest.fixture
def places(tmp_path, monkeypatch):
    for name in ("DATASET", "FEATURES", "WEIGHTS", "OUTPUT"):
        monkeypatch.setenv(f"LEGO_{name}", str(tmp_path / name.lower()))
    return tmp_path


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("ego4d", "epickitchen"),
    [
        ("ego4d", "epickitchen"),
        ("LEGO-VLLM-Features-Ego4D", "LEGO-VLLM-Features-EpicKitchens"),
        ("", ""),  # both repositories in one folder
        ("ego4d", "LEGO-VLLM-Features-EpicKitchens"),
    ],
)
@pytest.mark.parametrize("weights", [STABLE, "stable_diffusion", "SD1.5-pretrained"])
def test_configs_find_features_and_weights(places, ego4d, epickitchen, weights):
    found = {}
    for dataset, folder, model in (
        ("ego4d", ego4d, f"{MODEL}-ckpt450"),
        ("epickitchen", epickitchen, MODEL),
    ):
        for kind in ("image", "text"):
            place = places / "features" / folder / f"vllm_{kind}_feature" / model
            found[dataset, kind] = {s: str(made(place / s)) for s in ("train", "val")}
    start = made(places / "weights/pretrained" / weights) / "v1-5-pruned-emaonly.ckpt"
    start.write_bytes(b"")
    for dataset in ("ego4d", "epickitchen"):
        expected = {kind: found[dataset, kind]["val"] for kind in ("image", "text")}
        config = load_config(GenerateConfig, [str(CONFIGS / f"generate_{dataset}.yaml")])
        assert config.data.features == expected
        config = load_config(TrainConfig, [str(CONFIGS / f"train_{dataset}.yaml")])
        assert config.data.validation.features == expected
        assert config.model.ckpt_path == str(start)
    both = load_config(TrainConfig, [str(CONFIGS / "train_scaleup.yaml")])
    images = [found[dataset, "image"]["train"] for dataset in ("ego4d", "epickitchen")]
    assert both.data.train.features["image"] == images


def test_what_is_there_is_taken_as_it_is_named(places):
    """And what is nowhere keeps its name, for the line that says so."""
    named = places / "features/ego4d/vllm_image_feature/m"
    assert layout.released(named) == str(named)
    other = made(places / "features/LEGO-VLLM-Features-Ego4D/vllm_image_feature/m")
    assert layout.released(named) == str(other)
    assert layout.released(made(named)) == str(named)
    foreign = places / "features/epickitchen/vllm_image_feature/m"
    assert layout.released(foreign) == str(foreign)


def test_the_check_finds_features(places):
    made(places / "LEGO-VLLM-Features-Ego4D/vllm_text_feature/m/val")
    asked = str(places / "ego4d/vllm_text_feature/m/val")
    found = check.feature_folder([asked], "--text-features", [("ego4d", "val")])
    assert found == {("ego4d", "val"): layout.released(asked)} and asked not in found.values()


def test_stage_1_finds_what_was_cloned(places):
    name = "llava-llama-2-13b-chat-lightning-preview"
    assert stage_1_paths("ego4d", "val")["pretrained"].name == "llava_pretrained"
    made(places / "weights/pretrained" / name)
    assert stage_1_paths("ego4d", "val")["pretrained"].name == name

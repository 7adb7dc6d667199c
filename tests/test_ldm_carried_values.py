"""What travels beside the weights: scale factor, EMA decay, guidance scales, which weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import image
from small_model import FEATURE_DIM, IMAGE_ROWS, params_of, random_model, random_weights
from small_model import write_config as write

from egogen import EgoGenError
from egogen.seeds import stable_seed
from ldm.checkpoints.convert import bare_model, read_any
from ldm.checkpoints.layouts import DECAY, to_own, to_released
from ldm.config import GenerateConfig, load_config
from ldm.data import to_features
from ldm.generate import generate_batch
from ldm.images import to_image, to_pixels
from ldm.pipeline import LegoPipeline
from lego import stages
from llava.describing.decoding import Decoding
from llava.describing.describer import Description

PHOTO = Image.fromarray(image("photo", 40, 60))
DRAW = np.random.RandomState(0).standard_normal
ROWS = {"image": DRAW((IMAGE_ROWS, FEATURE_DIM)), "text": DRAW((5, FEATURE_DIM))}
ROWS = {name: rows.astype(np.float16) for name, rows in ROWS.items()}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write(tmp_path_factory.mktemp("carried"))


def expected(model, inference, name, scales) -> Image.Image:
    features = to_features(ROWS, model.conditioner.features)
    sample = {"pixels": to_pixels(PHOTO, 32), "prompt": "a b", "features": features}
    decoded = generate_batch(model, [sample], [name], inference, *scales)[0]
    return to_image(decoded, PHOTO.size, inference.height, inference.picture)


def test_a_pipeline_has_the_models_scale_factor(config):
    more = "model.params.scale_factor=0.4"
    model = random_model(params_of(config, more))
    inference = load_config(GenerateConfig, [str(config)], [more]).inference
    wanted = expected(model, inference, ("c", "0"), (1.5, 7.5))
    pipe = LegoPipeline.from_model(random_model(params_of(config, more)))
    generator = torch.Generator().manual_seed(stable_seed(0, "c", "0"))
    features = {f"{name}_features": rows for name, rows in ROWS.items()}
    made = pipe(
        PHOTO, "a b", **features, num_inference_steps=3, height=48, generator=[generator]
    ).images[0]
    assert np.array_equal(np.asarray(made), np.asarray(wanted))


def test_a_pipeline_of_a_training_config_has_the_averages(config, tmp_path):
    """Training starts without them; what is generated with are the averages, unless asked."""
    weights = random_weights(params_of(config), ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights), "ema_updates": 1}, tmp_path / "a.ckpt")
    training = tmp_path / "config.yaml"
    training.write_text(
        config.read_text().replace("  params:\n", "  params:\n    load_ema: false\n")
    )
    for overrides, state in (
        ([], weights.ema),
        (["model.params.load_ema=false"], weights.live),
    ):
        pipe = LegoPipeline.from_checkpoint(tmp_path / "a.ckpt", training, overrides)
        assert torch.equal(pipe.unet.state_dict()["conv_in.weight"], state["unet.conv_in.weight"])


def test_averages_of_another_decay_are_not_converted(config, tmp_path):
    params = params_of(config)
    state = to_released(random_weights(params, ("unet",)), random_model(params))
    for decay, fits in ((0.9999, True), (0.999, False)):
        state[DECAY] = torch.tensor(decay)
        torch.save({"state_dict": state}, tmp_path / "a.ckpt")
        if fits:
            assert read_any(tmp_path / "a.ckpt", bare_model(params)).ema
            continue
        with pytest.raises(EgoGenError, match="its EMA has the decay 0.999, but the config"):
            read_any(tmp_path / "a.ckpt", bare_model(params))


def test_the_frame_of_a_photograph_has_the_scales_of_the_config(config, tmp_path, monkeypatch):
    """Of image and text; what is described here is given."""
    weights = random_weights(params_of(config), ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights), "ema_updates": 1}, tmp_path / "a.ckpt")
    more = ["data.params.res=32", "inference.scales_img=[1.2,9]", "inference.scales_txt=[3.5,9]"]
    settings = load_config(GenerateConfig, [str(config)], more)
    pair = stages.Stages("", tmp_path / "a.ckpt", settings, Decoding(), torch.device("cpu"))
    monkeypatch.setattr(pair, "describe", lambda *_: [Description("a b", ROWS)])
    (made,) = pair.frames([PHOTO], ["pick up"])
    wanted = expected(pair.model, settings.inference, ("photo", "0"), (1.2, 3.5))
    assert np.array_equal(np.asarray(made.image), np.asarray(wanted))

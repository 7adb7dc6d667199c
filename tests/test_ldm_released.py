"""The tiny released model, filled by recipe, gives the released numbers (tolerances as stated)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe import array, image, tensor
from transformers import CLIPTextConfig

from egogen import EgoGenError
from ldm.checkpoint import load_released, read_weights
from ldm.conditioning import pad_text_rows
from ldm.config import TrainConfig, load_config
from ldm.model import LegoModel

DATA = Path(__file__).parent / "data" / "ldm"
SETTINGS = json.loads((DATA / "config.json").read_text())


def check(actual, golden, key, atol):
    actual = np.asarray(actual)
    np.testing.assert_array_equal(actual.shape, golden[f"{key}/shape"])
    if f"{key}/stride" in golden:
        actual = actual.reshape(-1)[:: int(golden[f"{key}/stride"])]
    np.testing.assert_allclose(actual, golden[key].reshape(actual.shape), atol=atol)


def released_state():
    """Every parameter but the text tower's, by its released name, and another average."""
    manifest = json.loads((DATA / "manifest_tiny.json").read_text())
    skipped = ("cond_stage_model.", "model_ema.decay", "model_ema.num_updates")
    state = {}
    for name, (shape, _) in manifest["state_dict"].items():
        if not name.startswith(skipped) and name not in manifest["buffers_not_ema"]:
            state[name] = torch.from_numpy(np.array(tensor(name, shape, 0)))
    return state


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")  # a small tower: its own numbers are not tested here
    sizes = dict(num_hidden_layers=1, intermediate_size=64, vocab_size=64)
    CLIPTextConfig(hidden_size=768, num_attention_heads=12, **sizes).save_pretrained(folder)
    overrides = [
        f"model.params.cond_stage_config.params.version={folder}",
        "model.params.unet_config.params.model_channels=32",
        "model.params.unet_config.params.channel_mult=[1,2,4]",
        "model.params.unet_config.params.num_res_blocks=1",
        "model.params.unet_config.params.num_heads=4",
        "model.params.first_stage_config.params.ddconfig.ch=32",
    ]
    return LegoModel(load_config(TrainConfig, [], overrides).model.params).eval()


@pytest.fixture(scope="module")
def state(model):
    text = {
        f"cond_stage_model.transformer.{n}": v for n, v in model.text_encoder.state_dict().items()
    }
    return released_state() | text


@torch.no_grad()
@pytest.mark.parametrize("use_ema, key", [(False, "eps"), (True, "eps_under_ema")])
def test_unet(model, state, use_ema, key):
    load_released(model, state, use_ema)
    golden = np.load(DATA / "unet.npz")
    z, image_latents = (
        torch.from_numpy(array(f"unet.{n}", (2, 4, 32, 32))) for n in ("z", "c_concat")
    )
    context = torch.from_numpy(array("unet.context", (2, 410, 768)))
    t = torch.tensor(SETTINGS["unet_t"])
    eps = model.predict(torch.cat([z, image_latents], dim=1), t, context)
    check(eps, golden, key, 1e-4)


@torch.no_grad()
def test_autoencoder(model, state):
    load_released(model, state)
    golden = np.load(DATA / "vae.npz")
    pixels = torch.from_numpy(image("vae.image", 256, 256).astype(np.float32) * 2 / 255 - 1)
    moments = model.encode_moments(pixels.permute(2, 0, 1)[None])
    check(moments, golden, "moments", 2e-4)
    check(model.image_latents(moments), golden, "mode", 2e-4)
    noise = torch.from_numpy(array("vae.sample_noise", (1, 4, 32, 32)))
    check(model.sample_latents(moments, noise), golden, "training_latent", 2e-4)
    latents = torch.from_numpy(array("vae.z", (1, 4, 32, 32)))
    check(model.decode(model.scale_factor * latents), golden, "decode_first_stage", 2e-4)


@torch.no_grad()
@pytest.mark.parametrize("rows", [5, 77, 90])
def test_conditioner(model, state, rows):
    load_released(model, state)
    golden = np.load(DATA / "conditioning.npz")
    image_features = torch.from_numpy(array("cond.llava_image", (256, 5120)))[None]
    text = torch.from_numpy(array(f"cond.llava_text.{rows}", (rows, 5120)))
    image_rows, text_rows = model.conditioner(image_features, pad_text_rows(text, 77)[None])
    check(text_rows, golden, f"self_attn_mix/{rows}", 3e-4)
    check(image_rows, golden, "projection_img/5", 3e-4)


def test_wrong_checkpoints_are_refused_by_name(model, state, tmp_path):
    with pytest.raises(EgoGenError, match="conditioner: missing: projection_img.weight"):
        load_released(model, {n: v for n, v in state.items() if n != "projection_img.weight"})
    with pytest.raises(EgoGenError, match="expected a released one"):
        load_released(model, {"model.embed_tokens.weight": torch.zeros(2, 2)})
    path = tmp_path / "payload.ckpt"
    torch.save({"state_dict": {"x": Path("/")}}, path)
    with pytest.raises(EgoGenError, match="payload.ckpt"):
        read_weights(path)
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(EgoGenError, match="payload.ckpt"):
        read_weights(path)

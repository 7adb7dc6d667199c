"""The tiny released model, filled by recipe, gives the released numbers (tolerances as stated)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from released_model import (
    DATA,
    SETTINGS,
    check,
    clip_tokenizer,
    inputs,
    pixels,
    tiny_model,
    tiny_state,
)

from egogen import EgoGenError
from ldm.checkpoints.load import load_weights, read_weights
from ldm.conditioning import FeatureConditioner, features_as_list, pad_rows
from ldm.released_config import released_features

TOKENS = json.loads((DATA / "tokens.json").read_text())
PROMPTS = [row["prompt"] for row in TOKENS if row.get("prompt") is not None]
RAW = [row["ids"] for row in TOKENS if row.get("prompt") is None]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def unet_inputs():
    z, image_latents = inputs("unet.z", 2, 4, 32, 32), inputs("unet.c_concat", 2, 4, 32, 32)
    return torch.cat([z, image_latents], dim=1), inputs("unet.context", 2, 410, 768)


@torch.no_grad()
@pytest.mark.parametrize("key", ["eps", "eps_fractional_t", "eps_text_only_context"])
def test_unet(model, key):
    x, context = unet_inputs()
    t = torch.tensor(SETTINGS["unet_tf" if "fractional" in key else "unet_t"])
    if "text_only" in key:
        context = context[:, :77]
    check(model.denoiser(x, t, context), np.load(DATA / "unet.npz"), key, 1e-4)


@torch.no_grad()
def test_unet_under_its_average(model):
    x, context = unet_inputs()
    t, golden = torch.tensor(SETTINGS["unet_t"]), np.load(DATA / "unet.npz")
    load_weights(model, tiny_state(), use_ema=True)
    try:
        check(model.denoiser(x, t, context), golden, "eps_under_ema", 1e-4)
    finally:
        load_weights(model, tiny_state(), use_ema=False)
    check(model.denoiser(x, t, context), golden, "eps_after_ema_scope", 1e-4)


def test_timestep_embedding(model):
    embedding = model.unet.time_proj(torch.tensor([0.0, 1.0, 37.0, 900.5, 999.0]))
    check(embedding, np.load(DATA / "unet.npz"), "timestep_embedding", 1e-4)


@torch.no_grad()
def test_held_context_is_the_context(model):
    """Keys and values computed once, one unconditional row shared, change nothing."""
    x, context = unet_inputs()
    rows, t = torch.tensor([1, 0, 0]), torch.tensor(37.0).expand(3)
    x = torch.cat([x, x[:1]])
    plain = model.denoiser(x, t, context[rows])
    predict = model.denoiser.hold(context, rows)
    assert torch.allclose(predict(x, t), plain, atol=1e-5)
    assert torch.equal(predict(x, t), predict(x, t))
    assert torch.equal(model.denoiser(x, t, context[rows]), plain)  # nothing is left behind


@torch.no_grad()
def test_autoencoder(model):
    golden = np.load(DATA / "vae.npz")
    moments = model.encode_moments(pixels("vae.image"))
    check(moments, golden, "moments", 2e-4)
    check(model.image_latents(moments), golden, "mode", 2e-4)
    noise = inputs("vae.sample_noise", 1, 4, 32, 32)
    check(model.posterior_sample(moments, noise), golden, "training_latent", 2e-4)
    latents = inputs("vae.z", 1, 4, 32, 32)
    check(model.decode(model.scale_factor * latents), golden, "decode_first_stage", 2e-4)
    check(model.decode(latents), golden, "decode_scaled_input", 2e-4)


def test_tokens():
    for row in TOKENS:
        if row.get("prompt") is not None:
            ids = clip_tokenizer()(
                row["prompt"], padding="max_length", truncation=True, max_length=77
            )
            assert ids.input_ids == row["ids"]


@torch.no_grad()
def test_text_tower_of_full_size(model):
    golden = np.load(DATA / "clip.npz")
    hidden = model.encode_text(PROMPTS)
    for i, row in enumerate(hidden):
        check(row[None], golden, f"last_hidden_state/{i}", 2e-4)
    output = model.text_encoder(torch.tensor(RAW), output_hidden_states=True)
    check(output.last_hidden_state, golden, "last_hidden_state/raw", 2e-4)
    check(output.hidden_states[-1], golden, "before_final_norm/raw", 5e-4)
    check(output.hidden_states[-2], golden, "penultimate_layer/raw", 5e-4)


@torch.no_grad()
@pytest.mark.parametrize("rows", [5, 77, 90])
def test_conditioning(model, rows):
    golden = np.load(DATA / "conditioning.npz")
    image_features = inputs("cond.llava_image", 256, 5120)[None]
    text = pad_rows(inputs(f"cond.llava_text.{rows}", rows, 5120), 77)[None]
    features = {"image": image_features, "text": text}
    found = model.conditioning(pixels("cond.image"), [SETTINGS["prompts"][2]], features)
    check(found.context, golden, f"context/{rows}", 3e-4)
    check(found.uncond_context, golden, "uncond_context", 3e-4)
    check(found.image_latents, golden, "c_concat", 3e-4)
    check(
        model.conditioner.encoders["text"].projection(text), golden, f"projection_txt/{rows}", 3e-4
    )
    encoded = model.conditioner(features)
    assert list(encoded) == ["image", "text"]
    check(encoded["text"], golden, f"self_attn_mix/{rows}", 3e-4)
    check(encoded["image"], golden, "projection_img/5", 3e-4)


@torch.no_grad()
def test_masked_padding_tells_nothing_of_its_length(model):
    """With `mask_text_padding` 5 rows give what they give alone, and padding gives zeros."""
    released = model.conditioner
    masked = FeatureConditioner(
        features_as_list(released_features({"variant": "text"})), mask_text_padding=True
    ).eval()
    masked.load_state_dict(
        {n: v for n, v in released.state_dict().items() if not n.startswith("encoders.image")}
    )
    text = inputs("cond.llava_text.5", 5, 5120)
    padded_text = pad_rows(text, 77)[None]
    alone = masked({"text": text[None]})["text"]
    padded = masked({"text": padded_text})["text"]
    torch.testing.assert_close(padded[:, :5], alone, atol=1e-4, rtol=0)
    assert not padded[:, 5:].any()
    attended = released.encoders["text"](padded_text)
    assert (attended[:, :5] - alone).abs().max() > 1e-2  # as released, padding is attended to


def test_wrong_checkpoints_are_refused_by_name(model, tmp_path):
    state = tiny_state()
    with pytest.raises(EgoGenError, match="missing: projection_img.weight"):
        load_weights(model, {n: v for n, v in state.items() if n != "projection_img.weight"})
    load_weights(model, state, use_ema=False)
    with pytest.raises(EgoGenError, match="expected a released one"):
        load_weights(model, {"model.embed_tokens.weight": torch.zeros(2, 2)})
    path = tmp_path / "payload.ckpt"
    torch.save({"state_dict": {"x": Path("/")}}, path)
    with pytest.raises(EgoGenError, match="payload.ckpt"):
        read_weights(path)
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(EgoGenError, match="payload.ckpt"):
        read_weights(path)

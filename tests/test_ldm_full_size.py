"""The released networks at the size of Stable Diffusion v1.5 (pytest -m slow; 3.4 GB weights)."""

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from released_model import DATA, check, inputs, pixels, released_state

from ldm.denoiser import UNetDenoiser, build_unet
from ldm.networks.architecture import build_autoencoder
from ldm.schema import ModelParams

pytestmark = pytest.mark.slow("full-size UNet and autoencoder")
PARAMS = ModelParams()


@torch.no_grad()
def test_unet():
    unet = build_unet(PARAMS.unet).eval()
    assert sum(p.numel() for p in unet.parameters()) == 859_532_484
    state = released_state("manifest_full.json", "model.diffusion_model.")
    unet.load_state_dict(convert_ldm_unet_checkpoint(state, dict(unet.config)), assign=True)
    golden = np.load(DATA / "unet_full.npz")
    x = torch.cat([inputs(f"unet.{n}", 1, 4, 32, 32) for n in ("z", "c_concat")], dim=1)
    predict = UNetDenoiser(unet).hold(inputs("unet.context", 1, 410, 768), torch.tensor([0]))
    for t in (1, 501, 999):
        check(predict(x, torch.tensor(t)), golden, f"eps/t{t}", 5e-4)


@torch.no_grad()
def test_autoencoder():
    vae = build_autoencoder(PARAMS.autoencoder, PARAMS.scale_factor).eval()
    state = released_state("manifest_full.json", "first_stage_model.")
    vae.load_state_dict(convert_ldm_vae_checkpoint(state, dict(vae.config)), assign=True)
    golden = np.load(DATA / "vae_full.npz")
    moments = vae.encode(pixels("vae.image")).latent_dist.parameters
    check(moments, golden, "moments", 1e-3)
    check(moments.chunk(2, dim=1)[0], golden, "mode", 1e-3)
    z = inputs("vae.z", 1, 4, 32, 32)
    check(vae.decode(z).sample, golden, "decode_first_stage", 1e-3)
    check(vae.decode(z / PARAMS.scale_factor).sample, golden, "decode_scaled_input", 1e-3)

"""Checkpoints of stage 2: the released (CompVis) names onto this project's modules."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from egogen import EgoGenError
from ldm.model import LegoModel

UNET = "model.diffusion_model."
EMA = "model_ema."
TEXT = "cond_stage_model.transformer."
CONDITIONER = ("projection_img.", "projection_txt.", "self_attn_mix.")


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors of a .ckpt/.pth or .safetensors file; nothing pickled is ever executed.

    Raises EgoGenError when the file is missing, truncated, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise EgoGenError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EgoGenError(f"{path}: not a readable checkpoint of plain tensors ({first})") from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise EgoGenError(f"{path}: expected a state dict of tensors (under 'state_dict')")
    return dict(state)


def released_ema(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged UNet under its live names: shadow names lack every "." after "model."."""
    average = {}
    for name in state:
        if name.startswith(UNET):
            shadow = EMA + name.removeprefix("model.").replace(".", "")
            if shadow not in state:
                raise EgoGenError(f"checkpoint: no average {shadow!r} for {name!r}")
            average[name] = state[shadow]
    return average


def load_released(model: LegoModel, state: Mapping[str, Tensor], use_ema: bool = True) -> None:
    """Load a released state dict into `model`, the UNet's average by default.

    Raises EgoGenError listing missing, unexpected and mis-shaped entries of any part.
    """
    unet = {name: value for name, value in state.items() if name.startswith(UNET)}
    if not unet:
        raise EgoGenError(f"checkpoint: no entry begins with {UNET!r}, expected a released one")
    if use_ema:
        unet = released_ema(state)
    vae = {n: v for n, v in state.items() if n.startswith("first_stage_model.")}
    text = {n.removeprefix(TEXT): v for n, v in state.items() if n.startswith(TEXT)}
    text = {n: v for n, v in text.items() if not n.endswith("position_ids")}
    if not any(n.startswith("text_model.") for n in model.text_encoder.state_dict()):
        text = {n.removeprefix("text_model."): v for n, v in text.items()}
    conditioner = {n: v for n, v in state.items() if n.startswith(CONDITIONER)}
    _load(model.unet, convert_ldm_unet_checkpoint(unet, dict(model.unet.config)), "unet")
    _load(model.vae, convert_ldm_vae_checkpoint(vae, dict(model.vae.config)), "vae")
    _load(model.text_encoder, text, "text_encoder")
    _load(model.conditioner, conditioner, "conditioner")


def _load(module: nn.Module, state: Mapping[str, Tensor], part: str) -> None:
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(n for n in own.keys() & state.keys() if own[n].shape != state[n].shape)
    if missing or unexpected or shapes:
        lists = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
        told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in lists.items() if names)
        raise EgoGenError(f"checkpoint: {part}: {told}")
    module.load_state_dict(state)

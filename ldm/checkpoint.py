"""Checkpoints of stage 2: the released (CompVis) names onto this project's modules."""

from __future__ import annotations

import os
import pickle
import zipfile
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
from ldm.model import FROZEN_PARTS, LegoModel

UNET = "model.diffusion_model."
EMA = "model_ema."
TEXT = "cond_stage_model.transformer."
CONV_IN = "input_blocks.0.0.weight"
OWN, OWN_EMA = "model.", "ema."  # prefixes in checkpoints of ldm.training
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
        # Mapped, not read, where the format allows it: half the memory, and a look costs nothing.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
    conditioner = {n: v for n, v in state.items() if n.startswith(CONDITIONER)}
    _load_frozen(model, state)
    _load(model.unet, convert_ldm_unet_checkpoint(unet, dict(model.unet.config)), "unet")
    _load(model.conditioner, conditioner, "conditioner")


def _load_frozen(model: LegoModel, state: Mapping[str, Tensor]) -> None:
    """Autoencoder and text tower under their released names."""
    vae = {n: v for n, v in state.items() if n.startswith("first_stage_model.")}
    text = _strip(state, TEXT)
    text = {n: v for n, v in text.items() if not n.endswith("position_ids")}
    if not any(n.startswith("text_model.") for n in model.text_encoder.state_dict()):
        text = {n.removeprefix("text_model."): v for n, v in text.items()}
    _load(model.vae, convert_ldm_vae_checkpoint(vae, dict(model.vae.config)), "vae")
    _load(model.text_encoder, text, "text_encoder")


def load_own(model: LegoModel, state: Mapping[str, Tensor], use_ema: bool = True) -> None:
    """Load a checkpoint written by `ldm.training`.

    Names of `LegoModel` stand behind "model.", averages of what was trained behind "ema.".
    """
    averages = {n.removeprefix(OWN_EMA): v for n, v in state.items() if n.startswith(OWN_EMA)}
    if use_ema and not averages:
        raise EgoGenError(
            "checkpoint: holds no averages; model.params.load_ema=false uses the rest"
        )
    live = {n.removeprefix(OWN): v for n, v in state.items() if n.startswith(OWN)}
    if use_ema:
        unknown = sorted(averages.keys() - live.keys())
        if unknown:
            raise EgoGenError(f"checkpoint: averages of unknown weights: {', '.join(unknown)}")
        live |= averages
    _load(model, live, "model")


def is_own(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(OWN + "unet.") for name in state)


def load_for_generation(model: LegoModel, state: Mapping[str, Tensor], use_ema: bool) -> None:
    """A released checkpoint or one of `ldm.training`, told apart by its names."""
    (load_own if is_own(state) else load_released)(model, state, use_ema)


def load_start(model: LegoModel, path: str | None) -> None:
    """Weights that training starts from: Stable Diffusion v1.5 (CompVis names), a released
    checkpoint, or frozen parts alone in this project's names (the mini world's). None: random.

    Parts that the file lacks keep their random values, except the frozen ones, which must be there.
    """
    if not path:
        return
    state = read_weights(path)
    frozen = {part: _strip(state, f"{part}.") for part in FROZEN_PARTS}
    if all(frozen.values()):
        for part, values in frozen.items():
            values = {name: value.float() for name, value in values.items()}
            _load(getattr(model, part), values, part)
        return
    if is_own(state):
        load_own(model, state, use_ema=False)
        return
    unet = {name: value for name, value in state.items() if name.startswith(UNET)}
    if not unet:
        raise EgoGenError(f"{path}: no entry begins with {UNET!r}, expected Stable Diffusion v1")
    _load_frozen(model, state)
    unet[UNET + CONV_IN] = widened(unet.get(UNET + CONV_IN), model.unet.conv_in.in_channels, path)
    _load(model.unet, convert_ldm_unet_checkpoint(unet, dict(model.unet.config)), "unet")
    conditioner = {n: v for n, v in state.items() if n.startswith(CONDITIONER)}
    if conditioner:
        _load(model.conditioner, conditioner, "conditioner")


def widened(weight: Tensor | None, channels: int, path: str) -> Tensor:
    """The first convolution (out, in, 3, 3) with zeros for the channels that it lacks."""
    if weight is None or weight.shape[1] > channels:
        raise EgoGenError(f"{path}: {UNET + CONV_IN}: expected at most {channels} input channels")
    return nn.functional.pad(weight, (0, 0, 0, 0, 0, channels - weight.shape[1]))


def _strip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


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

"""Adapters (LoRA, https://arxiv.org/abs/2106.09685): small products that layers add to their weights.

A layer of weight W (out, in, kernel ...) with an adapter has W + alpha / rank * up @ down: down is
(rank, in, kernel ...), up (out, rank, 1 ...). Names are the layer's and, behind it, DOWN and UP.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from egogen import EgoGenError
from egogen.atomic import atomic_path, parse_json
from egogen.errors import listed
from egogen.weight_files import check_names, read_weight_file, shapes_of, tensors
from ldm.checkpoints.layouts import OWN, OWN_EMA
from ldm.checkpoints.released_names import PEFT_LEVELS

FILE = "pytorch_lora_weights.safetensors"  # diffusers' name
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def adapted(
    weights: Mapping[str, Tensor],
    adapters: Mapping[str, Tensor],
    alphas: Mapping[str, Any],
    where: object,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Those of `weights` whose layers have adapters, these added; `alphas` by layers.

    Raises EgoGenError, which `where` begins, for layers that `weights` lacks, for shapes that do
    not fit and for an alpha that is no number.
    """
    layers = [name.removesuffix(DOWN) for name in adapters if name.endswith(DOWN)]
    layers = [layer for layer in layers if f"{layer}.weight" in weights]
    expected: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        shape, rank = weights[f"{layer}.weight"].shape, adapters[layer + DOWN].shape[:1]
        expected[layer + DOWN] = (*rank, *shape[1:])
        expected[layer + UP] = (*shape[:1], *rank, *(1 for _ in shape[2:]))
    check_names(shapes_of(adapters), expected, where)
    changed = {}
    for layer in layers:
        weight, down, up = weights[f"{layer}.weight"], adapters[layer + DOWN], adapters[layer + UP]
        alpha = alphas.get(layer)
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise EgoGenError(f"{where}: {layer}: alpha {alpha!r}, expected a number")
        product = (up.flatten(1).float() @ down.flatten(1).float()).view(weight.shape)
        changed[f"{layer}.weight"] = weight + (scale * alpha / len(down) * product).to(weight.dtype)
    return changed


def with_file(
    weights: Mapping[str, Tensor], path: str | os.PathLike, scale: float
) -> dict[str, Tensor]:
    """`weights` by names of `LegoModel` -> those that the adapters in a file change."""
    adapters, alphas = read_lora(path)
    return adapted(weights, adapters, alphas, path, scale)


def merged(state: Mapping[str, Tensor], alpha: Any, where: object) -> dict[str, Tensor]:
    """A state dict of `ldm.training` that holds adapters, live and EMA, beside the weights, which
    did not learn -> one of the usual kind, with them in the weights. Errors: as of `adapted`.
    """
    live, ema = (
        {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
        for prefix in (OWN, OWN_EMA)
    )
    weights = {name: x for name, x in live.items() if not name.endswith((DOWN, UP))}
    layers = {name: live[name] for name in live.keys() - weights.keys()}
    alphas = {name.removesuffix(DOWN): alpha for name in layers}
    made = {OWN + n: x for n, x in (weights | adapted(weights, layers, alphas, where)).items()}
    averaged = {name.split(".")[0] for name in ema}  # an EMA is of a whole network
    for name, x in (weights | adapted(weights, ema, alphas, where)).items():
        if name.split(".")[0] in averaged:
            made[OWN_EMA + name] = x
    return made


def read_lora(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Adapters by names of `LegoModel`, and alphas by layers, of a file that `load_lora_weights` of
    a pipeline of Stable Diffusion v1 reads: with the names of peft, of older diffusers, of kohya.
    """
    state, settings = tensors(read_weight_file(path), path), {}
    if odd := [name for name in state if "lora" not in name or "dora_scale" in name]:
        raise EgoGenError(f"{path}: holds {listed(odd)}, expected adapters alone (LoRA)")
    if Path(path).suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}")
        settings = parse_json(text.encode(), str(path))
    try:
        state, known = StableDiffusionLoraLoaderMixin.lora_state_dict(state)
        state = state | (known or {})
        texts = {name: state.pop(name) for name in [*state] if name.startswith("text_encoder.")}
        state = convert_unet_state_dict_to_peft(state)
        if texts:
            texts = convert_state_dict_to_peft(convert_state_dict_to_diffusers(texts))
    except (KeyError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise EgoGenError(f"{path}: not adapters with names of diffusers ({reason})") from None
    state |= {name.replace(".text_model.", ".", 1): value for name, value in texts.items()}
    given = {name: state.pop(name) for name in [*state] if name.endswith(".alpha")}
    alphas = {re.sub(r"(\.lora_A\.weight)?\.alpha$", "", name): x for name, x in given.items()}
    for name in [name for name in state if name.endswith(DOWN)]:
        layer, rank = name.removesuffix(DOWN), state[name].shape[0] if state[name].ndim else 1
        alphas.setdefault(layer, _alpha(settings, layer, rank))
    return state, alphas


def _alpha(settings: Mapping[str, Any], layer: str, rank: int) -> Any:
    """Of a layer by peft's settings, which stand in a file behind the network's name."""
    part, name = layer.split(".", 1)
    alpha = settings.get(f"{part}.lora_alpha", rank)
    for pattern, value in (settings.get(f"{part}.alpha_pattern") or {}).items():
        alpha = value if re.fullmatch(rf"(.*\.)?({pattern})", name) else alpha
    return alpha * math.sqrt(rank) if settings.get(f"{part}.use_rslora") else alpha


def write_lora(path: Path, adapters: Mapping[str, Tensor], alpha: float) -> None:
    """Adapters by peft's names in a `LegoModel` -> a file for `load_lora_weights` and --lora."""
    state = {PEFT_LEVELS.sub("", name): x.detach().cpu() for name, x in adapters.items()}
    settings: dict[str, Any] = {}
    for name in (name for name in state if name.endswith(DOWN)):
        part, layer = name.removesuffix(DOWN).split(".", 1)
        settings |= {f"{part}.r": len(state[name]), f"{part}.lora_alpha": alpha}
        settings.setdefault(f"{part}.target_modules", []).append(layer)
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(settings)}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata)

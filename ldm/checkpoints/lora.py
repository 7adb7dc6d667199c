"""Adapters (LoRA, https://arxiv.org/abs/2106.09685): products of two small matrices for weights.

A layer's weight W (out, in, kernel ...) becomes W + alpha / rank * up @ down, with down (rank, in,
kernel ...) and up (out, rank, 1 ...). Names are the layer's and DOWN or UP, as peft has them.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from egogen import EgoGenError, stable_seed
from egogen.atomic import atomic_path, parse_json
from egogen.errors import listed, need_package
from egogen.weight_files import check_names, read_weight_file, shapes_of, tensors
from ldm.checkpoints.layouts import OWN, OWN_EMA
from ldm.checkpoints.released_names import PEFT_LEVELS
from ldm.model import LegoModel
from ldm.schema import LoraParams

FILE = "pytorch_lora_weights.safetensors"  # diffusers' name
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
ODD_KINDS = ("use_rslora", "use_dora", "alpha_pattern", "lora_bias")  # in peft's settings
# Short for layers by the ends of their names, as peft takes them.
TARGETS = {"attention": ["to_q", "to_k", "to_v", "to_out.0"], "conditioner": ["projection"]}


def add_adapters(model: LegoModel, params: LoraParams, seed: int) -> None:
    """Put adapters into the layers that `targets` names; they change nothing yet, and alone learn.

    Raises EgoGenError for a target that names no layer, or one of a kind that takes no adapter.
    """
    need_package("peft", "config: model.params.lora")
    from peft import LoraConfig, inject_adapter_in_model

    if not 0 < (params.alpha or 0) < math.inf:
        raise EgoGenError(f"config: model.params.lora.alpha={params.alpha}: expected above 0")
    where = "config: model.params.lora.targets"
    wanted: dict[str, list[str]] = {}
    for target in params.targets or [""]:
        part = target if target == "conditioner" else model.denoiser.name
        ends = TARGETS.get(target, [target])
        layers = [f".{name}" for name, _ in model.get_submodule(part).named_modules() if name]
        if not any(layer.endswith(f".{end}") for layer in layers for end in ends):
            known = "'attention', 'conditioner', or what a layer's name ends in, as 'ff.net.2'"
            raise EgoGenError(f"{where}: {target!r}: expected {known}")
        wanted[part] = wanted.get(part, []) + ends
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "lora"))
        for part, ends in wanted.items():
            config = LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=ends)
            try:
                inject_adapter_in_model(config, model.get_submodule(part))
            except ValueError as error:  # a layer of another kind
                raise EgoGenError(f"{where}: {error}") from None


def adapted(
    weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], scale: float, where: object
) -> dict[str, Tensor]:
    """`weights` with `scale` times the adapters added. Raises EgoGenError, beginning with `where`,
    for adapters of layers that `weights` lacks, and for shapes that do not fit.
    """
    layers = [name.removesuffix(DOWN) for name in adapters if name.endswith(DOWN)]
    expected, made = {}, dict(weights)
    for layer in (layer for layer in layers if f"{layer}.weight" in weights):
        shape, rank = weights[f"{layer}.weight"].shape, adapters[layer + DOWN].shape[:1]
        expected[layer + DOWN] = (*rank, *shape[1:])
        expected[layer + UP] = (*shape[:1], *rank, *(1 for _ in shape[2:]))
    check_names(shapes_of(adapters), expected, where)
    for layer in layers:
        weight, down, up = made[f"{layer}.weight"], adapters[layer + DOWN], adapters[layer + UP]
        product = (up.flatten(1).float() @ down.flatten(1).float()).view(weight.shape)
        made[f"{layer}.weight"] = weight + (scale * product).to(weight.dtype)
    return made


def merged(state: Mapping[str, Tensor], note: Mapping, where: object) -> dict[str, Tensor]:
    """A state dict of `ldm.training` with adapters, live and EMA, beside the weights, which did not
    learn -> one of the usual kind, with them in the weights. `note`: its rank and alpha.
    """
    alpha, rank = (note.get(name) for name in ("alpha", "rank"))
    if not (isinstance(alpha, int | float) and isinstance(rank, int) and rank > 0):
        raise EgoGenError(f"{where}: lora: {dict(note)}, expected alpha and rank, numbers")
    made = {n: x for n, x in state.items() if n.startswith(OWN) and not n.endswith((DOWN, UP))}
    weights = {name.removeprefix(OWN): x for name, x in made.items()}
    for prefix in (OWN, OWN_EMA):
        found = {n: x for n, x in state.items() if n.startswith(prefix) and n.endswith((DOWN, UP))}
        found = {name.removeprefix(prefix): x for name, x in found.items()}
        parts = tuple({name.split(".")[0] for name in found})  # an EMA is of whole networks
        whole = adapted(weights, found, alpha / rank, where)
        made |= {prefix + name: x for name, x in whole.items() if name.startswith(parts)}
    return made


def read_lora(path: str) -> dict[str, Tensor]:
    """Adapters by names of `LegoModel`, alpha / rank in `up`, from a file with names of peft or of
    diffusers (as of its scripts for Stable Diffusion v1). Raises EgoGenError for other files.
    """
    settings, state = {}, convert_unet_state_dict_to_peft(tensors(read_weight_file(path), path))
    if path.endswith(".safetensors"):
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}")
        settings = parse_json(text.encode(), path)
    odd = [name for name in state if not name.endswith((DOWN, UP))]
    if odd := odd + [key for key in settings if settings[key] and key.endswith(ODD_KINDS)]:
        names = f"unet.LAYER{DOWN} and {UP}, as diffusers and this project save adapters (LoRA)"
        raise EgoGenError(f"{path}: holds {listed(odd)}, expected {names}")
    for name, up in state.items():
        alpha = settings.get(f"{name.split('.')[0]}.lora_alpha")
        if name.endswith(UP) and isinstance(alpha, int | float) and up.ndim > 1:
            state[name] = up.float() * (alpha / up.shape[1])
    return state


def write_lora(path: Path, adapters: Mapping[str, Tensor], alpha: float | None) -> None:
    """Adapters by peft's names in a `LegoModel` -> a file for `load_lora_weights` and --lora."""
    state = {PEFT_LEVELS.sub("", name): x.detach().cpu() for name, x in adapters.items()}
    settings: dict = {}
    for name in (name for name in state if name.endswith(DOWN)):
        part, layer = name.removesuffix(DOWN).split(".", 1)
        settings |= {f"{part}.r": len(state[name]), f"{part}.lora_alpha": alpha}
        settings.setdefault(f"{part}.target_modules", []).append(layer)
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(settings)}
    with atomic_path(path) as temporary:
        save_file({name: x.contiguous() for name, x in state.items()}, temporary, metadata)

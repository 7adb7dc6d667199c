"""Adapters (LoRA) that learn in place of a model's networks, see `ldm.schema.LoraParams`."""

import math
from typing import Any

import torch

from egogen import EgoGenError
from egogen.errors import need_package
from egogen.seeds import stable_seed
from ldm.model import LegoModel
from ldm.schema import LoraParams

KEY = "model.params.lora"
# Short for layers by the ends of their names, as peft takes them.
TARGETS = {"attention": ["to_q", "to_k", "to_v", "to_out.0"], "conditioner": ["projection"]}


def lora_note(params: LoraParams) -> dict[str, Any] | None:
    """What a checkpoint says of its adapters; None: there are none."""
    if not params.rank:
        return None
    alpha = params.rank if params.alpha is None else params.alpha
    return {"rank": params.rank, "alpha": float(alpha), "targets": list(params.targets)}


def add_adapters(model: LegoModel, params: LoraParams, seed: int) -> None:
    """Adapters, which alone learn then, in the layers that `targets` names; they change nothing yet.

    Raises EgoGenError for a target that names no layer, or none that can have adapters.
    """
    need_package("peft", f"config: {KEY}")
    from peft import LoraConfig, inject_adapter_in_model

    note: Any = lora_note(params)
    if not (math.isfinite(note["alpha"]) and note["alpha"] > 0):
        raise EgoGenError(f"config: {KEY}.alpha={params.alpha}: expected a number above 0")
    model.requires_grad_(False)
    wanted: dict[str, list[str]] = {}
    for target in params.targets or [""]:
        part = "conditioner" if target == "conditioner" else model.denoiser.name
        layers, ends = dict(model.get_submodule(part).named_modules()), TARGETS.get(target, [target])
        if not any(f".{layer}".endswith(f".{end}") for layer in layers if layer for end in ends):
            known = "'attention', 'conditioner' or the name of a layer as 'ff.net.0.proj'"
            raise EgoGenError(f"config: {KEY}.targets: {target!r} is in no network, expected {known}")
        wanted.setdefault(part, []).extend(ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "lora"))
        for part, ends in wanted.items():
            config = LoraConfig(r=params.rank, lora_alpha=note["alpha"], target_modules=ends)
            try:
                inject_adapter_in_model(config, model.get_submodule(part))
            except ValueError as error:
                raise EgoGenError(f"config: {KEY}.targets: {error}") from None

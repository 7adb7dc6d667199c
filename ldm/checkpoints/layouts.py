"""Weights of a `LegoModel` by this project's names, whatever file they stand in.

Names are those of the model's state dict, `unet.*`, `conditioner.*`, `vae.*`, `text_encoder.*`.
Each layout is checked completely: what a file lacks, has besides or has in another shape is one
error that lists it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from egogen import EgoGenError
from egogen.weight_files import check_names, shapes_of
from ldm.checkpoints.released_names import (
    EMA,
    LIVE,
    UNET,
    released_names,
    released_shape,
    shadow_name,
    stored_name,
)
from ldm.model import LegoModel
from ldm.schedule import released_schedule

OWN, OWN_EMA = "model.", "ema."  # prefixes in checkpoints of ldm.training.module
DECAY, UPDATES = EMA + "decay", EMA + "num_updates"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@dataclass
class Weights:
    """`ema`: of what was trained, under the names of `live`; may be empty."""

    live: dict[str, Tensor]
    ema: dict[str, Tensor] = field(default_factory=dict)
    updates: int = 0  # how often the EMA was updated

    def chosen(self, use_ema: bool, where: str) -> dict[str, Tensor]:
        """What a model is to hold. Raises EgoGenError when the EMA is asked for and missing."""
        if use_ema and not self.ema:
            raise EgoGenError(f"{where}: holds no EMA; model.params.load_ema=false uses the rest")
        return self.live | self.ema if use_ema else self.live


def is_own(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(OWN + "vae.") for name in state)


def is_released(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(UNET) for name in state)


def from_own(
    state: Mapping[str, Tensor], model: LegoModel, where: str, updates: int = 0
) -> Weights:
    """A state dict of `ldm.training`: names of `LegoModel` behind "model.", EMA behind "ema.".

    A part (the UNet, the conditioner) has an EMA of all its weights or of none.
    """
    own = shapes_of(model.state_dict())
    parts = {name.split(".")[1] for name in state if name.startswith(OWN_EMA)}
    shadowed = [name for name in own if name.split(".")[0] in parts]
    live = {name: stored_name(OWN + name) for name in own}
    ema = {name: stored_name(OWN_EMA + name) for name in shadowed}
    expected = {names[name]: own[name] for names in (live, ema) for name in names}
    check_names(shapes_of(state), expected, where)
    return Weights(
        {name: state[stored] for name, stored in live.items()},
        {name: state[stored] for name, stored in ema.items()},
        updates,
    )


def to_own(weights: Weights) -> dict[str, Tensor]:
    state = {OWN + name: value for name, value in weights.live.items()}
    state |= {OWN_EMA + name: value for name, value in weights.ema.items()}
    return {stored_name(name): value for name, value in state.items()}


def from_released(
    state: Mapping[str, Tensor], model: LegoModel, where: str, start: bool = False
) -> Weights:
    """A state dict of the released code: UNet, its EMA (where there is one), encoders, conditioner.

    `start`: Stable Diffusion v1 will do: a file without any conditioner leaves that out of `live`,
    and an EMA, which training does not start from, is not looked at.
    """
    if not is_released(state):
        raise EgoGenError(f"{where}: no entry begins with {UNET!r}, expected a released one")
    _check_schedule(state, model, where)
    if start:
        state = {name: value for name, value in state.items() if not name.startswith(EMA)}
    names, own = released_names(model), shapes_of(model.state_dict())
    conditioner = [name for name in own if name.startswith("conditioner.")]
    if start and not any(names[name] in state for name in conditioner):
        names = {o: released for o, released in names.items() if o not in conditioner}
    shadows = {o: shadow_name(n) for o, n in names.items() if n.startswith("model.")}
    if not any(name in state for name in shadows.values()):
        shadows = {}
    kept = {o: LIVE + names[o] for o in conditioner if LIVE + names.get(o, "") in state}
    expected = {n: released_shape(n, own[o]) for o, n in names.items()}
    expected |= {n: own[o] for o, n in (shadows | kept).items()}
    updates, derived = int(state.get(UPDATES, 0)), {DECAY, UPDATES, *_derived(model)}
    state = _with_text_level({name: v for name, v in state.items() if name not in derived})
    check_names(shapes_of(state), expected, where)
    live = {o: state[n].reshape(own[o]) for o, n in names.items()}
    ema = {o: state[n] for o, n in shadows.items()} | {o: live[o] for o in kept}
    live |= {o: state[n] for o, n in kept.items()}
    return Weights(live, ema, updates)


def to_released(weights: Weights, model: LegoModel) -> dict[str, Tensor]:
    """The released layout, with the vectors that follow from the config.

    Its EMA is of the UNet only, and the released code generates with the conditioner as it stands
    beside it. So the EMA of a conditioner stands there, and the live one, which the released code
    does not look at, under "live.".
    """
    names = released_names(model)
    live, ema = weights.live, weights.ema
    state = dict(_derived(model))
    for own, name in names.items():
        value = live[own]
        if own.startswith("conditioner.") and own in ema:
            value, state[LIVE + name] = ema[own], value
        state[name] = value.reshape(released_shape(name, value.shape))
    unet = [own for own in names if own.startswith(f"{model.denoiser.name}.")]
    if ema:
        state[DECAY] = torch.tensor(model.config.ema_decay, dtype=torch.float32)
        state[UPDATES] = torch.tensor(weights.updates, dtype=torch.int32)
        state |= {shadow_name(names[own]): ema[own] for own in unet}
    return state


def _derived(model: LegoModel) -> dict[str, Tensor]:
    """What the released layout holds that is no weight: the schedule, and the text positions."""
    config = model.config
    schedule = released_schedule(config.linear_start, config.linear_end, config.timesteps)
    positions = model.text_encoder.config.max_position_embeddings
    return {**schedule, POSITIONS: torch.arange(positions)[None]}


def _check_schedule(state: Mapping[str, Tensor], model: LegoModel, where: str) -> None:
    betas = state.get("betas")
    known = _derived(model)["betas"]
    if betas is not None and not (
        betas.shape == known.shape and torch.allclose(betas.float(), known, rtol=1e-5, atol=0)
    ):
        raise EgoGenError(
            f"{where}: betas {betas[0]:.6g} to {betas[-1]:.6g} in {len(betas)} steps are not those "
            "of the config's linear_start, linear_end and timesteps"
        )


def _with_text_level(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Files written with new transformers lack one level of the text tower's names: put it back."""
    old, new = POSITIONS.removesuffix("embeddings.position_ids"), "cond_stage_model.transformer."
    lacking = {n: old + n.removeprefix(new) for n in state if n.startswith(new) and old not in n}
    return {lacking.get(name, name): value for name, value in state.items()}

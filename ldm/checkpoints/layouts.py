"""Weights of a `LegoModel` by this project's names, whatever file they stand in.

Names are those of the model's state dict, `unet.*`, `conditioner.*`, `vae.*`, `text_encoder.*`.
Each layout is checked completely: what a file lacks, has besides or has in another shape is one
error that lists it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from egogen import EgoGenError
from egogen.weight_files import check_names, fit_names, shapes_of
from ldm.checkpoints import released_names as naming
from ldm.checkpoints.released_names import EMA, LIVE, TEXT, UNET, VAE, released_names
from ldm.model import LegoModel
from ldm.schedule import released_schedule

State = Mapping[str, Tensor]
OWN, OWN_EMA = "model.", "ema."  # prefixes in checkpoints of ldm.training.module
DECAY, UPDATES = EMA + "decay", EMA + "num_updates"
POSITIONS = TEXT + "embeddings.position_ids"
TEXT_STAGE = TEXT.removesuffix("text_model.")
# What some files of Stable Diffusion hold besides, for training alone.
UNUSED = ("logvar", "lvlb_weights", VAE + "loss.")


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


def with_known_names(state: State, model: LegoModel, where: str) -> dict[str, Tensor]:
    """`state` without what wrappers have added to its names, and with what they took from them."""
    names = released_names(model)
    known = {naming.stored_name(prefix + own) for prefix in (OWN, OWN_EMA) for own in names}
    for name in names.values():
        known |= {name, naming.shadow_name(name), LIVE + name}
    known |= {DECAY, UPDATES, *_derived(model)}
    levels = (OWN, UNET, VAE, TEXT_STAGE)
    fitted = fit_names(state, lambda name: _text_level(name) in known, where, levels)
    return {name: value for name, value in fitted.items() if not name.startswith(UNUSED)}


def is_own(state: State) -> bool:
    return any(name.startswith(OWN + "vae.") for name in state)


def from_own(state: State, model: LegoModel, where: str, updates: int = 0) -> Weights:
    """A state dict of `ldm.training`: names of `LegoModel` behind "model.", EMA behind "ema.".

    A part (the UNet, the conditioner) has an EMA of all its weights or of none.
    """
    own = shapes_of(model.state_dict())
    parts = {name.split(".")[1] for name in state if name.startswith(OWN_EMA)}
    shadowed = [name for name in own if name.split(".")[0] in parts]
    live = {name: naming.stored_name(OWN + name) for name in own}
    ema = {name: naming.stored_name(OWN_EMA + name) for name in shadowed}
    expected = {names[name]: own[name] for names in (live, ema) for name in names}
    check_names(shapes_of(state), expected, where)
    found = [{name: state[n] for name, n in names.items()} for names in (live, ema)]
    return Weights(found[0], found[1], updates)


def to_own(weights: Weights) -> dict[str, Tensor]:
    state = {OWN + name: value for name, value in weights.live.items()}
    state |= {OWN_EMA + name: value for name, value in weights.ema.items()}
    return {naming.stored_name(name): value for name, value in state.items()}


def from_released(state: State, model: LegoModel, where: str, start: bool = False) -> Weights:
    """A state dict of the released code: UNet, its EMA (where there is one), encoders, conditioner.

    `start`: Stable Diffusion v1 will do: a file without any conditioner leaves that out of `live`,
    a first convolution of fewer input channels is widened by zeros, and an EMA, which training does
    not start from, is not looked at.
    """
    if not any(name.startswith(UNET) for name in state):
        expected = "expected a released one, Stable Diffusion v1, or one of this project"
        raise EgoGenError(f"{where}: no entry begins with {UNET!r}, {expected}")
    betas, known = state.get("betas"), _derived(model)
    if betas is not None and not same_numbers(betas, known["betas"], 1e-5):
        ends = f"{float(betas[0]):.6g} to {float(betas[-1]):.6g} " if betas.numel() else ""
        raise EgoGenError(
            f"{where}: betas {ends}in {betas.numel()} steps are not those "
            "of the config's linear_start, linear_end and timesteps"
        )
    if start:
        first = UNET + model.denoiser.released_name(model.denoiser.first_weight)
        wide = {n: model.denoiser.widened(x) for n, x in state.items() if n == first}
        state = {n: x for n, x in state.items() if not n.startswith(EMA)} | wide
    names, own = released_names(model), shapes_of(model.state_dict())
    conditioner = [name for name in own if name.startswith("conditioner.")]
    if start and not any(names[name] in state for name in conditioner):
        names = {o: released for o, released in names.items() if o not in conditioner}
    shadows = {o: naming.shadow_name(n) for o, n in names.items() if n.startswith("model.")}
    if not any(name in state for name in shadows.values()):
        shadows = {}
    kept = {o: LIVE + names[o] for o in conditioner if LIVE + names.get(o, "") in state}
    shapes = {n: naming.released_shape(n, own[o]) for o, n in names.items()}
    shapes |= {n: own[o] for o, n in (shadows | kept).items()}
    counted = float(state.get(UPDATES, 0))  # infinite where it was stored in half precision
    updates = int(counted) if math.isfinite(counted) else 0
    derived = {DECAY, UPDATES, *known}
    state = {_text_level(name): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name not in derived}
    check_names(shapes_of(state), shapes, where)
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
        state[name] = value.reshape(naming.released_shape(name, value.shape))
    unet = [own for own in names if own.startswith(f"{model.denoiser.name}.")]
    if ema:
        state[DECAY] = torch.tensor(model.config.ema_decay, dtype=torch.float32)
        state[UPDATES] = torch.tensor(weights.updates, dtype=torch.int32)
        state |= {naming.shadow_name(names[own]): ema[own] for own in unet if own in ema}
    return state


def _derived(model: LegoModel) -> dict[str, Tensor]:
    """What the released layout holds that is no weight: the schedule, and the text positions."""
    config = model.config
    schedule = released_schedule(config.linear_start, config.linear_end, config.timesteps)
    positions = model.text_encoder.config.max_position_embeddings
    return {**schedule, POSITIONS: torch.arange(positions)[None]}


def same_numbers(found: Tensor, known: Tensor, tolerance: float) -> bool:
    """Whether `found` is `known` (float32) in the precision that it is or once was stored in."""
    if found.shape != known.shape or not found.is_floating_point():
        return False
    # A value that was rounded twice may be a unit in the last place away.
    tolerance = max(tolerance, torch.finfo(found.dtype).eps)
    return any(
        torch.allclose(found.float(), known.to(dtype).float(), rtol=tolerance, atol=0)
        for dtype in (found.dtype, torch.float16, torch.bfloat16)
    )


def _text_level(name: str) -> str:
    """Files written with new transformers lack one level of the text tower's names: put it back."""
    lacking = name.startswith(TEXT_STAGE) and not name.startswith(TEXT)
    return TEXT + name.removeprefix(TEXT_STAGE) if lacking else name

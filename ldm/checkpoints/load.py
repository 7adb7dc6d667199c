"""Reading checkpoints of stage 2 into a `LegoModel`; `layouts` beside it knows what they hold."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from egogen.atomic import read_object
from egogen.weight_files import check_names, read_weight_file, shapes_of, tensors
from ldm.checkpoints import layouts
from ldm.checkpoints.diffusers_folder import INDEX, read_folder
from ldm.checkpoints.lora import merged
from ldm.model import FROZEN_PARTS, LegoModel

# Beside the weights of a checkpoint: how often the EMA was updated, rank and alpha of the adapters
# that are in it, and the guidance that it was distilled from.
NOTES = {"ema_updates": int, "lora": dict, "distill": dict}


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """The state dict of a file, see `egogen.weight_files`."""
    return read_file(path)[0]


def read_file(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """-> also the notes that `ldm.training` writes beside the weights, those of NOTES there are.
    Adapters are added to the weights beside which they stand. Of a folder (`read_folder`) the notes
    alone.
    """
    if Path(path).is_dir():
        return {}, read_object(Path(path) / INDEX, needed=False)
    content = read_weight_file(path)
    notes = {n: content[n] for n, kind in NOTES.items() if isinstance(content.get(n), kind)}
    state = tensors(content, path)
    return merged(state, notes["lora"], path) if "lora" in notes else state, notes


def load_weights(
    model: LegoModel, state: layouts.State, use_ema: bool = True, where: str = "checkpoint"
) -> None:
    """Load a state dict of the released code or of `ldm.training`, distinguished by its names; an
    empty one stands for the folder `where`.

    Raises EgoGenError listing missing, unexpected and mis-shaped entries of any part.
    """
    weights = weights_in(where, model, state)
    model.load_state_dict(weights.chosen(use_ema, where), strict=False)


def weights_in(
    where: str, model: LegoModel, state: layouts.State, updates: int = 0, start: bool = False
) -> layouts.Weights:
    """The weights of a state dict in any form, which its names give away, or, where it is empty, of
    the folder `where`. `updates`: of the EMA; `start`: see `layouts.from_released`.
    """
    if not state:
        return read_folder(where, model, start)
    state = layouts.with_known_names(state, model, where)
    if layouts.is_own(state):
        return layouts.from_own(state, model, where, updates)
    return layouts.from_released(state, model, where, start)


def load_start(model: LegoModel, path: str | None) -> None:
    """Weights that training starts from. None: random.

    Stable Diffusion v1 (.ckpt or .safetensors with CompVis names, or a folder of diffusers), a
    released checkpoint, one of this project in any form, or a file of the frozen parts alone in
    this project's names. The first convolution is widened by zeros where it takes fewer channels
    than the model's. What Stable Diffusion lacks, the conditioner, stays random; anything else that
    is missing is an error.
    """
    if not path:
        return
    state = read_weights(path)
    found = layouts.with_known_names(state, model, path)
    values = {name.removeprefix(layouts.OWN): value for name, value in found.items()}
    if values and all(name.split(".")[0] in FROZEN_PARTS for name in values):
        own = shapes_of(model.state_dict())
        expected = {n: shape for n, shape in own.items() if n.split(".")[0] in FROZEN_PARTS}
        check_names(shapes_of(values), expected, path)
    else:
        values = weights_in(path, model, state, start=True).live
    model.load_state_dict(values, strict=False)

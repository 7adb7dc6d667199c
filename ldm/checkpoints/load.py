"""Reading checkpoints of stage 2 into a `LegoModel`; `layouts` beside it knows what they hold."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from egogen import EgoGenError
from egogen.weight_files import check_names, read_weight_file, shapes_of, tensors
from ldm.checkpoints.diffusers_folder import read_folder
from ldm.checkpoints.layouts import (
    OWN,
    Weights,
    from_own,
    from_released,
    is_own,
    is_released,
    with_known_names,
)
from ldm.checkpoints.released_names import UNET
from ldm.model import FROZEN_PARTS, LegoModel


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors of a .ckpt/.pth or .safetensors file; nothing pickled is ever executed.

    Raises EgoGenError when the file is missing, truncated, or holds no state dict. Classes of the
    training code that a .ckpt names beside it are not looked at.
    """
    return read_file(path)[0]


def read_file(path: str | os.PathLike) -> tuple[dict[str, Tensor], int]:
    """-> the state dict, see `read_weights`, and how often its EMA was updated (`ldm.
    training` writes that beside it; 0 where nothing is said).
    """
    content = read_weight_file(path)
    updates = content.get("ema_updates", 0)
    state = tensors(content, path)
    return state, updates if isinstance(updates, int) else 0


def load_weights(
    model: LegoModel, state: Mapping[str, Tensor], use_ema: bool = True, where: str = "checkpoint"
) -> None:
    """Load a state dict of the released code or of `ldm.training`, distinguished by its names.

    Raises EgoGenError listing missing, unexpected and mis-shaped entries of any part.
    """
    state = with_known_names(state, model, where)
    read = from_own if is_own(state) else from_released
    load(model, read(state, model, where).chosen(use_ema, where))


def load_start(model: LegoModel, path: str | None) -> None:
    """Weights that training starts from. None: random.

    Stable Diffusion v1 (.ckpt or .safetensors with CompVis names, or a folder of diffusers), a
    released checkpoint, one of this project in any form, or a file of the frozen parts alone in
    this project's names (the mini world's). The first convolution is widened by zeros where it
    takes fewer channels than the model's. What Stable Diffusion lacks, the conditioner, stays
    random; anything else that is missing is an error.
    """
    if not path:
        return
    if Path(path).is_dir():
        load(model, read_folder(path, model, start=True).live)
        return
    state = with_known_names(read_weights(path), model, path)
    bare = {name.removeprefix(OWN): value for name, value in state.items()}
    if all(name.split(".")[0] in FROZEN_PARTS for name in bare):
        own = shapes_of(model.state_dict())
        expected = {n: shape for n, shape in own.items() if n.split(".")[0] in FROZEN_PARTS}
        check_names(shapes_of(bare), expected, path)
        load(model, bare)
    else:
        load(model, start_weights(state, model, path).live)


def start_weights(state: dict[str, Tensor], model: LegoModel, where: str) -> Weights:
    if is_own(state):
        return from_own(state, model, where)
    if not is_released(state):
        raise EgoGenError(f"{where}: holds neither Stable Diffusion v1 nor weights of this project")
    denoiser = model.denoiser
    first = UNET + denoiser.released_name(denoiser.first_weight)
    if first in state:
        state[first] = denoiser.widened(state[first])
    return from_released(state, model, where, start=True)


def load(model: LegoModel, values: Mapping[str, Tensor]) -> None:
    """Copy checked values in; their number type becomes the model's."""
    model.load_state_dict(values, strict=False)

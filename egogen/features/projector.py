"""The map from vision features to what the language model sees: one linear layer, or two and GELU.

A compact image store holds it once, as `projector.safetensors` with the names of transformers'
Llava: `linear_1.weight` (D, C), `linear_1.bias` (D,), and the same of `linear_2` when there are two
layers. Letters: P patches of an image, C vision width, D language width.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from egogen import EgoGenError, atomic_path

PROJECTOR_FILE = "projector.safetensors"
ONE_LAYER = frozenset({"linear_1.weight", "linear_1.bias"})
TWO_LAYERS = ONE_LAYER | {"linear_2.weight", "linear_2.bias"}


class Projector:
    """Applies a projector's weights, float32, to vision features."""

    def __init__(self, state: Mapping[str, Tensor], where: str | os.PathLike):
        """Raises EgoGenError naming `where` unless `state` is a projector of one or two layers."""
        if set(state) not in (ONE_LAYER, TWO_LAYERS):
            held = ", ".join(sorted(state)) or "nothing"
            expected = "weight and bias of linear_1, and of linear_2 when there are two layers"
            raise EgoGenError(f"{where}: holds {held}, expected a projector ({expected})")
        self.state = {name: value.detach().float().contiguous() for name, value in state.items()}
        self.layers = len(self.state) // 2
        width: int | None = None  # of what the layer before gives
        for name in sorted({name.partition(".")[0] for name in state}):
            weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
            fits = weight.ndim == 2 and width in (None, weight.shape[1])
            if not fits or bias.shape != weight.shape[:1]:
                shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
                expected = f"expected (out, {width or 'in'}) and (out,)"
                raise EgoGenError(f"{where}: {name} of shapes {shapes}, {expected}")
            width = weight.shape[0]
        self.input_width = self.state["linear_1.weight"].shape[1]
        self.output_width = weight.shape[0]

    def to(self, device: torch.device | str) -> Self:
        return type(self)({name: value.to(device) for name, value in self.state.items()}, "")

    def __call__(self, features: Tensor) -> Tensor:
        """(..., P, C) -> (..., P, D), float32 (half precision under autocast)."""
        state = self.state
        rows = F.linear(features.float(), state["linear_1.weight"], state["linear_1.bias"])
        if self.layers == 1:
            return rows  # (..., P, D)
        return F.linear(F.gelu(rows), state["linear_2.weight"], state["linear_2.bias"])

    def same_as(self, other: Self) -> bool:
        same = (torch.equal(value, other.state[name]) for name, value in self.state.items())
        return self.state.keys() == other.state.keys() and all(same)


def keep_projector(root: str | os.PathLike, projector: Projector) -> None:
    """Write the projector into a store, or check that the one that is there is the same."""
    path = Path(root) / PROJECTOR_FILE
    if not path.exists():
        with atomic_path(path) as temporary:
            save_file(projector.state, temporary)
    elif not read_projector(root).same_as(projector):
        advice = "choose another folder, or remove this one"
        raise EgoGenError(f"{path}: another model's projector; {advice}")


def read_projector(root: str | os.PathLike) -> Projector:
    """The projector of a compact image store. Raises EgoGenError naming the file."""
    path = Path(root) / PROJECTOR_FILE
    try:
        return Projector(load_file(path), path)
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such file, a compact image store needs it") from None
    except (OSError, SafetensorError) as error:
        raise EgoGenError(f"{path}: not a readable safetensors file ({error})") from None

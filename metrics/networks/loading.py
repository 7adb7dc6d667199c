"""Weight files under their released names -> state dicts, without running what they contain."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from egogen.errors import EgoGenError
from egogen.weight_files import load_torch

WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys that training code puts around one


def load_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU, floating point ones as float32, without a `module.` prefix.

    Takes safetensors, a torch file and a TorchScript archive. Nothing pickled is executed: torch's
    restricted unpickler reads the file, and what it refers to besides tensors (the author's config
    class, say) is replaced by an object that does nothing. A file that refers to the operating
    system is refused. Raises EgoGenError naming the file.
    """
    path = Path(path)
    try:
        found = load_file(path) if path.suffix == ".safetensors" else load_torch(path)
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such weight file") from None
    except (
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        OSError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # its text advises to load unsafely
            reason = "not tensors by name, or not to be read without executing it"
        raise EgoGenError(f"{path}: not a readable weight file ({reason})") from None
    for name in WRAPPERS:
        if isinstance(found.get(name), Mapping):
            found = found[name]
    state = {
        str(name).removeprefix("module."): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in found.items()
        if isinstance(tensor, torch.Tensor)
    }
    if not state:
        raise EgoGenError(f"{path}: holds no tensors, expected the weights of a network")
    return state


def fitting(
    module: torch.nn.Module, state: Mapping, path: str | os.PathLike
) -> dict[str, torch.Tensor]:
    """The tensors of `state` that `module` has; missing ones or other shapes are errors.

    Names that the module does not have are left out (classifiers, text towers). Counters of batch
    normalisation may be absent.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and "num_batches_tracked" not in name]
    if missing:
        raise EgoGenError(
            f"{path}: lacks {missing[0]!r} and {len(missing) - 1} more, expected the weights of "
            f"{type(module).__name__}"
        )
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            raise EgoGenError(
                f"{path}: {name!r} has shape {tuple(state[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    return {name: state[name] for name in own if name in state}


def fill(module: torch.nn.Module, state: Mapping, path: str | os.PathLike) -> torch.nn.Module:
    """Put `state` into `module` for evaluation, see `fitting`.

    The tensors are taken over, not copied, so the module may have been made on the meta device.
    """
    module.load_state_dict(fitting(module, state, path), strict=False, assign=True)
    return module.eval().requires_grad_(False)


def library_network(kind, config, state: Mapping, path: str | os.PathLike):
    """A network of `kind`, a model class of transformers, that takes over the tensors of `state`.

    `config` is of that class. Raises EgoGenError naming `path` when `state` does not fit.
    """
    from transformers.utils import logging  # here: reading a file needs no transformers

    with torch.device("meta"):
        fit = fitting(kind(config), state, path)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network = kind.from_pretrained(None, config=config, state_dict=fit)
    finally:
        if shown:
            logging.enable_progress_bar()
    return network.eval().requires_grad_(False)


def part_of(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    names = [name for name in state if name.startswith(prefix)]
    return {name.removeprefix(prefix): state[name] for name in names}

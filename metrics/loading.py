"""Weight files under their released names -> state dicts, without running what they contain."""

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch.nn import Module

from egogen.weight_files import check_names, fit_names, read_weight_file, shapes_of, tensors

Network = TypeVar("Network", bound=Module)


def load_state_dict(
    path: str | os.PathLike, parts: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU, floating point ones as float32.

    The names that the network has begin with one of `parts`: what wrappers have put before that is
    taken off, and a single part that no name has is put before all. Takes safetensors, a torch
    file and a TorchScript archive, see `egogen.weight_files`. Raises EgoGenError naming the file.
    """
    state = tensors(read_weight_file(path), path, drop_others=True)
    state = fit_names(state, lambda name: name.startswith(parts), path)
    if len(parts) == 1 and not any(name.startswith(parts) for name in state):
        state = {parts[0] + name: value for name, value in state.items()}
    return {name: v.float() if v.is_floating_point() else v for name, v in state.items()}


def fill(module: Network, state: Mapping, path: str | os.PathLike) -> Network:
    """Put `state` into `module` for evaluation; missing tensors or other shapes are errors.

    Names that the module does not have are left out (classifiers, text towers). Counters of batch
    normalisation may be absent. The tensors are taken over, not copied.
    """
    expected = {
        name: shape
        for name, shape in shapes_of(module.state_dict()).items()
        if name in state or "num_batches_tracked" not in name
    }
    where = f"{path}: expected the weights of {type(module).__name__}"
    check_names(shapes_of(state), expected, where, unexpected=True)
    module.load_state_dict({name: state[name] for name in expected}, strict=False, assign=True)
    return module.eval().requires_grad_(False)


def filled(make: Callable[[], Network], state: Mapping, path: str | os.PathLike) -> Network:
    """What `make` makes, with the tensors of `state` in place of its initial ones, see `fill`."""
    from transformers.initialization import no_init_weights  # here: reading needs no transformers

    with no_init_weights():  # on the meta device it would lack the buffers that it computes
        network = make()
    return fill(network, state, path)

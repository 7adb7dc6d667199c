"""Weight files (safetensors, torch) read as data, and the names and shapes in them checked.

    content = read_weight_file("model.ckpt")
    state = tensors(content, "model.ckpt")
    state = fit_names(state, model.state_dict().__contains__, "model.ckpt")
    check_names(shapes_of(state), shapes_of(model.state_dict()), "model.ckpt")

Nothing that is pickled in a file is executed. Tensors are maps of their file where its format
allows it: memory is used where and while one is looked at.
"""

import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from egogen import unpickling
from egogen.errors import EgoGenError, listed

Shapes = Mapping[str, Sequence[int]]  # by the names of tensors
DEEPEST = 5  # keys in keys that weights are looked for in
# Keys that training code puts weights under, before all others that hold tensors.
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
# Levels that parallel, sharded, compiled and checkpointed networks add anywhere in their names.
ADDED = re.compile(
    r"(?:^|(?<=\.))(?:module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|_orig_mod\.?"
)
# Buffers that follow from the config, or that only training counts.
COMPUTED = (
    *("rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "position_ids", "causal_mask"),
    *("rotary_emb.cos_cached", "rotary_emb.sin_cached", "num_batches_tracked", "n_averaged"),
)
OUTER = re.compile(r"^(?:state_dict|base_model|model|network|net)\.")  # of a network in a trainer


def read_weight_file(path: str | os.PathLike) -> Mapping[str, Any]:
    """What a .safetensors file or a torch file (.ckpt, .pth, .bin, TorchScript) holds, on the CPU.

    Of other things than tensors `egogen.unpickling` says what becomes. Raises EgoGenError for a
    file that is missing, cut short, of another kind, or not to be read without executing what it
    holds.
    """
    path = Path(path)
    if not path.is_file():
        raise EgoGenError(f"{path}: no such weight file")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except Exception as error:  # damaged pickles raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "not tensors by name, or not to be read without executing it"
        raise EgoGenError(f"{path}: not a readable weight file ({reason})") from None


def _load_torch(path: Path) -> Mapping[str, Any]:
    """The content of a torch file, memory-mapped where its format allows it."""
    archive = zipfile.is_zipfile(path)
    if archive:
        with zipfile.ZipFile(path) as file:
            if any(name.endswith("/constants.pkl") for name in file.namelist()):
                return torch.jit.load(path, map_location="cpu").state_dict()
    elif tarfile.is_tarfile(path):  # torch would unpack it
        raise ValueError("a tar archive, as torch wrote before 2017")
    # `weights_only` is torch's own unpickler, which reads neither protocol 4 nor numpy's objects;
    # who asks for it everywhere gets the same safety here.
    with mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0"}):
        found = torch.load(
            path, map_location="cpu", weights_only=False, mmap=archive, pickle_module=unpickling
        )
    if not isinstance(found, Mapping):
        raise ValueError(f"expected tensors by name, found {type(found).__name__}")
    return found


class _Place(NamedTuple):
    """A mapping that holds tensors: those, the rest of it, and where it stands in the file."""

    order: tuple[int, int, int]  # 0 in WRAPPERS, 1 at the top, 2 elsewhere; depth; -tensors
    key: str
    state: dict[str, Tensor]
    others: dict[str, Any]


def _state_dicts(content: Mapping, keys: tuple[str, ...] = ()) -> Iterator[_Place]:
    """All mappings of tensors in `content`; a network that was saved whole counts as one."""
    whole = "_parameters" in content and "_modules" in content
    items = dict(_of_module(content) if whole else ((str(k), v) for k, v in content.items()))
    state = {name: value for name, value in items.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in items.items() if name not in state}
    if state:
        rank = 1 if not keys else 0 if all(key in WRAPPERS for key in keys) else 2
        yield _Place((rank, len(keys), -len(state)), ".".join(keys), state, others)
    for name, value in others.items():
        if isinstance(value, Mapping) and len(keys) < DEEPEST:
            yield from _state_dicts(value, (*keys, name))


def _of_module(module: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The state dict of a pickled `torch.nn.Module`, from its attributes."""
    if not isinstance(module, Mapping) or depth > 10 * DEEPEST:
        return
    for kind in ("_parameters", "_buffers", "_modules"):
        held = module.get(kind)
        for name, value in held.items() if isinstance(held, Mapping) else ():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif kind == "_modules":
                yield from _of_module(value, f"{prefix}{name}.", depth + 1)


def tensors(
    content: Mapping[str, Any], path: str | os.PathLike, drop_others: bool = False
) -> dict[str, Tensor]:
    """The state dict in `content`: what stands under keys of `WRAPPERS`, or itself, or what stands
    under another key; the outermost of several, then that with most tensors.

    Numbers, texts and mappings beside the tensors (epochs, optimizers) are left out. Raises
    EgoGenError for a file without tensors, for one with two state dicts of the same names of which
    neither comes first, and for anything else beside the tensors, unless `drop_others`.
    """
    places = sorted(_state_dicts(content), key=lambda place: place.order)
    if not places:
        keys = listed(list(content)) or "nothing"
        raise EgoGenError(f"{path}: holds no tensors but {keys}, expected the weights of a network")
    first = places[0]
    for other in places[1:]:
        shared = len(first.state.keys() & other.state.keys())
        if other.order[:2] == first.order[:2] and 2 * shared > len(other.state):
            keys = f"{first.key!r} and {other.key!r}, expected one of them"
            raise EgoGenError(f"{path}: holds weights of the same names under {keys}")
    for name, value in {} if drop_others else first.others.items():
        plain = value is None or isinstance(value, str | int | float | list | tuple | Mapping)
        if not plain or isinstance(value, unpickling.StandIn):
            kind = type(value).__name__
            raise EgoGenError(f"{path}: entry {name!r} is no tensor ({kind}), expected one")
    for name, value in first.state.items():
        whole_numbers = name.endswith("weight") and not value.is_floating_point()
        if whole_numbers or value.is_quantized or value.is_meta:
            kind = f"{value.device.type} {value.dtype}"
            expected = "expected numbers in floating point (neither quantised nor left out)"
            raise EgoGenError(f"{path}: entry {name!r} is {kind}, {expected}")
    return {name: value.detach() for name, value in first.state.items()}


def _inner(name: str) -> Iterator[str]:
    """`name`, and what is left of it without the levels that wrappers have put around."""
    yield name
    name = ADDED.sub("", name)
    yield name
    while found := OUTER.match(name):
        name = name[found.end() :]
        yield name


def fit_names(
    state: Mapping[str, Tensor],
    known: Callable[[str], bool],
    path: str | os.PathLike,
    levels: Sequence[str] = (),
) -> dict[str, Tensor]:
    """`state` under the names of which `known` says that a network has them.

    Levels that wrappers have added are taken off, and one of `levels` is put before a name that
    lacks it. Names that fit nowhere are left without what parallel and compiled networks add;
    those of `COMPUTED` go. Raises EgoGenError when two names stand for one.
    """
    origins: dict[str, str] = {}  # name of the network -> of the file
    lacking = []
    for name in state:
        target = next((inner for inner in _inner(name) if known(inner)), None)
        if target is None:
            lacking.append(name)
        elif target in origins:
            both = f"{origins[target]} and {name} both stand for {target}"
            raise EgoGenError(f"{path}: {both}, expected one")
        else:
            origins[target] = name
    for name in lacking:
        longer = (level + inner for level in levels for inner in _inner(name))
        target = next((n for n in longer if known(n) and n not in origins), None)
        if target is not None or not name.endswith(COMPUTED):
            bare = ADDED.sub("", name)
            origins[target or (name if bare in origins else bare)] = name
    return {target: state[name] for target, name in origins.items()}


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def check_names(found: Shapes, expected: Shapes, where: object, unexpected: bool = False) -> None:
    """Compare the names and shapes that were found with those that a model has.

    Raises one EgoGenError that lists what is missing, unexpected (unless `unexpected` allows it)
    and of another shape. `where` begins it.
    """
    missing = [name for name in expected if name not in found]
    more = [] if unexpected else [name for name in found if name not in expected]
    both = [(n, tuple(found[n]), tuple(shape)) for n, shape in expected.items() if n in found]
    other = [f"{name} {there}, expected {shape}" for name, there, shape in both if there != shape]
    problems = {"missing": missing, "unexpected": more, "mis-shaped": other}
    text = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
    if text:
        raise EgoGenError(f"{where}: {text}")

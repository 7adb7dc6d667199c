"""Weight files (safetensors, torch) read as data, and the names and shapes in them checked.

    content = read_weight_file("model.ckpt")
    state = tensors(content, "model.ckpt", wrappers=("state_dict",))
    check_names(shapes_of(state), shapes_of(model.state_dict()), "model.ckpt")

Nothing that is pickled in a file is executed. Tensors are maps of their file where its format
allows it: memory is used where and while one is looked at.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from egogen.errors import EgoGenError

Shapes = Mapping[str, Sequence[int]]  # by the names of tensors
LISTED = 20  # names of one kind that an error lists
WRONG_FORMAT = (pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError)
UNREADABLE = (*WRONG_FORMAT, RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError)
SYSTEM_MODULES = ("os", "posix", "nt", "sys", "subprocess", "shutil")
LEGACY_PICKLES = 4  # before 2020 a torch file was: magic number, protocol, system, then the object


def read_weight_file(path: str | os.PathLike) -> Mapping[str, Any]:
    """What a .safetensors file or a torch file (.ckpt, .pth, .bin, TorchScript) holds, on the CPU.

    See `load_torch` for what becomes of other things than tensors. Raises EgoGenError for a file
    that is missing, cut short, of another kind, or not to be read without executing what it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise EgoGenError(f"{path}: no such weight file")
    try:
        return load_file(path) if path.suffix == ".safetensors" else load_torch(path)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # its text advises to load unsafely
            reason = "not tensors by name, or not to be read without executing it"
        raise EgoGenError(f"{path}: not a readable weight file ({reason})") from None


def tensors(
    content: Mapping[str, Any],
    path: str | os.PathLike,
    wrappers: Iterable[str] = (),
    drop_others: bool = False,
) -> dict[str, Tensor]:
    """The state dict in `content`, the keys of `wrappers` opened where it stands behind them.

    An entry that is no tensor is an error, or left out with `drop_others`; so is a file without
    any tensor.
    """
    for key in wrappers:
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    other = [str(name) for name in content if str(name) not in state]
    if other and not drop_others:
        raise EgoGenError(f"{path}: entry {other[0]!r} is no tensor, expected weights alone")
    if not state:
        raise EgoGenError(f"{path}: holds no tensors, expected the weights of a network")
    return state


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def check_names(found: Shapes, expected: Shapes, where: object, unexpected: bool = False) -> None:
    """Compare the names and shapes that were found with those that a model has.

    Raises one EgoGenError that lists what is missing, unexpected (unless `unexpected` allows it)
    and of another shape. `where` begins it.
    """
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [] if unexpected else [name for name in found if name not in expected],
        "mis-shaped": [
            f"{name} {tuple(found[name])}, expected {tuple(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    text = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
    if text:
        raise EgoGenError(f"{where}: {text}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


class _StandIn:
    """In place of a class or function that a weight file refers to: gives an empty mapping.

    A mapping, because torch's unpickler sets attributes and items on that, whatever the class was.
    """

    def __new__(cls, *_, **__):
        return OrderedDict()


def load_torch(path: str | os.PathLike) -> Mapping:
    """What a torch file holds, on the CPU, memory-mapped where its format allows it.

    Torch's restricted unpickler reads the file, and what it refers to besides tensors (a class of
    the training code, say) is replaced by an object that does nothing. Raises ValueError for a file
    that refers to the operating system or holds no mapping, and what torch raises otherwise.
    """
    path = Path(path)
    archive = zipfile.is_zipfile(path)
    if archive:
        with zipfile.ZipFile(path) as file:
            if any(name.endswith("/constants.pkl") for name in file.namelist()):
                return torch.jit.load(path, map_location="cpu").state_dict()
    references = sorted(_references(path, archive))
    for module, name in references:
        if module in SYSTEM_MODULES:
            raise ValueError(f"it refers to {module}.{name}, expected weights")
    stand_ins: list[Any] = [
        type(name, (_StandIn,), {"__module__": module, "__qualname__": name})
        for module, name in references
    ]
    # Torch's own tensor functions come before these.
    with torch.serialization.safe_globals(stand_ins):
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    if not isinstance(found, Mapping):
        raise ValueError(f"expected tensors by name, found {type(found).__name__}")
    return found


def _references(path: Path, archive: bool) -> set[tuple[str, str]]:
    """(module, name) of everything that the pickles of a torch file refer to; they are not run."""
    if archive:
        with zipfile.ZipFile(path) as file:
            names = [name for name in file.namelist() if name.endswith("/data.pkl")]
            return {found for name in names for found in _globals(file.read(name))}
    with open(path, "rb") as pickles:
        return {found for _ in range(LEGACY_PICKLES) for found in _globals(pickles)}


def _globals(pickled: bytes | IO[bytes]) -> Iterator[tuple[str, str]]:
    """The GLOBAL opcodes of one pickle (bytes, or a file that stands at its beginning)."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            # Torch writes the names of Python 2, and reads them as those of Python 3.
            renamed = (IMPORT_MAPPING.get(module, module), name)
            yield NAME_MAPPING.get((module, name), renamed)

"""Weight files under their released names -> state dicts, without running what they contain."""

from __future__ import annotations

import os
import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from egogen.errors import EgoGenError

WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys that training code puts around one
SYSTEM_MODULES = ("os", "posix", "nt", "sys", "subprocess", "shutil")
LEGACY_PICKLES = 4  # before 2020 a torch file was: magic number, protocol, system, then the object


def load_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU, floating point ones as float32, without a `module.` prefix.

    Takes safetensors, a torch file and a TorchScript archive. Nothing pickled is executed: torch's
    restricted unpickler reads the file, and what it refers to besides tensors (the author's config
    class, say) is replaced by an object that does nothing. A file that refers to the operating
    system is refused. Raises EgoGenError naming the file.
    """
    path = Path(path)
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
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


class _StandIn:
    """In place of a class or function that a weight file refers to: gives an empty mapping.

    A mapping, because torch's unpickler sets attributes and items on that, whatever the class was.
    """

    def __new__(cls, *_, **__):
        return OrderedDict()


def _load_torch(path: Path) -> Mapping:
    archive = zipfile.is_zipfile(path)
    if archive:
        with zipfile.ZipFile(path) as file:
            if any(name.endswith("/constants.pkl") for name in file.namelist()):
                return torch.jit.load(path, map_location="cpu").state_dict()
    references = sorted(_references(path, archive))
    for module, name in references:
        if module in SYSTEM_MODULES:
            raise ValueError(f"it refers to {module}.{name}, expected weights")
    stand_ins = [
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
    found = set()
    if archive:
        with zipfile.ZipFile(path) as file:
            names = [name for name in file.namelist() if name.endswith("/data.pkl")]
            for name in names:
                found |= _globals(file.read(name))
        return found
    with open(path, "rb") as file:
        for _ in range(LEGACY_PICKLES):
            found |= _globals(file)
    return found


def _globals(pickled) -> set[tuple[str, str]]:
    """The GLOBAL opcodes of one pickle (bytes, or a file that stands at its beginning)."""
    names = {
        tuple(argument.split(" ", 1))
        for opcode, argument, _ in pickletools.genops(pickled)
        if opcode.name == "GLOBAL"
    }
    # Torch writes the names of Python 2, and reads them as those of Python 3.
    return {
        NAME_MAPPING.get(name, (IMPORT_MAPPING.get(name[0], name[0]), name[1])) for name in names
    }


def fill(module: torch.nn.Module, state: Mapping, path: str | os.PathLike) -> torch.nn.Module:
    """Put `state` into `module` for evaluation; parameters missing or of another shape are errors.

    Names that the module does not have are left out (classifiers, text towers). Counters of batch
    normalisation may be absent. The tensors are taken over, not copied, so the module may have been
    made on the meta device.
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
    taken = {name: state[name] for name in own if name in state}
    module.load_state_dict(taken, strict=False, assign=True)
    return module.eval().requires_grad_(False)

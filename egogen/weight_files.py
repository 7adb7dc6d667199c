"""Torch files as data: nothing that is pickled in them is executed."""

from __future__ import annotations

import os
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

SYSTEM_MODULES = ("os", "posix", "nt", "sys", "subprocess", "shutil")
LEGACY_PICKLES = 4  # before 2020 a torch file was: magic number, protocol, system, then the object


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

"""Reading the pickles of torch files as data: nothing that they name is imported or run.

Tensors are made by torch's own functions (`TORCH`). Whatever else a pickle refers to (numpy's
numbers, a trainer's settings, a network saved whole) becomes a `StandIn`, a mapping that keeps the
items and attributes that the pickle gives it and does nothing.

The class `Unpickler` and the function `load` make this module what `torch.load` wants as its
`pickle_module`.
"""

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any

import torch

REBUILD = (
    "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_qtensor "
    "_rebuild_meta_tensor_no_storage"
)
HOLDERS = "_rebuild_parameter _rebuild_parameter_with_state _rebuild_device_tensor_from_cpu_tensor"
SYSTEM_MODULES = ("os", "posix", "nt", "sys", "subprocess", "shutil")


class StandIn(dict):
    """In place of any class or function: takes all arguments, keeps items, does nothing."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def append(self, item: Any) -> None:
        """A list's or a set's items are not kept."""

    extend = add = append


# What tensors are made of, by module and name. Of a class of their own they become plain ones, and
# parameters and those of other devices the tensor in them.
TORCH: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda make, _, given, __: _call(make, given),
    **{("torch._utils", name): getattr(torch._utils, name) for name in REBUILD.split()},
    **{("torch._utils", name): lambda held, *_: held for name in HOLDERS.split()},
}


def _call(function: Any, arguments: tuple) -> Any:
    """Raises UnpicklingError for a function that is neither one of `TORCH` nor a stand-in."""
    inert = isinstance(function, type) and issubclass(function, StandIn)
    if not inert and not any(function is known for known in TORCH.values()):
        raise pickle.UnpicklingError("not to be read without executing what it holds")
    return function(*arguments)


_InPython: Any = pickle._Unpickler  # the library's own, whose opcodes can be replaced


class Unpickler(_InPython):
    """Reads any protocol; every way to call, make or change an object ends in `_call` or here."""

    dispatch = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Raises ValueError for a name of the operating system."""
        if self.proto < 3:  # written under the names of Python 2
            moved = IMPORT_MAPPING.get(module, module), name
            module, name = NAME_MAPPING.get((module, name), moved)
        if module in SYSTEM_MODULES:
            raise ValueError(f"it refers to {module}.{name}, expected weights")
        if (module, name) in TORCH:
            return TORCH[module, name]
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype | torch.layout | torch.qscheme):
            return found
        return type(name, (StandIn,), {"__module__": module})

    def _instantiate(self, function: Any, arguments: tuple) -> None:
        self.append(_call(function, arguments))

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keywords
        self.load_reduce()

    def load_build(self) -> None:
        """Attributes, which only stand-ins get."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn) and isinstance(state, Mapping):
            self.stack[-1].update(state)

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build


def load(file: IO[bytes], **options: Any) -> Any:
    return Unpickler(file, **options).load()

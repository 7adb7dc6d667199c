"""A pickled table of pandas, read without running anything but what makes such a table."""

import importlib
import io
import pickle
import tomllib
from pathlib import Path
from typing import Any

from egogen.build.records import Records
from egogen.errors import EgoGenError, need_package

ALLOWED = tomllib.loads(Path(__file__).with_name("pickles.toml").read_text(encoding="utf-8"))
MOVED = {"pandas.core.indexes.numeric.Int64Index": "pandas.Index"}  # names of before -> today's
_InPython: Any = pickle._Unpickler  # the library's own, whose opcodes can be replaced


class Unpickler(_InPython):
    """Calls what pickles.toml allows, and gives a state only to what that made."""

    dispatch = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # as protocol 2 says
        full = f"{module}.{name}".replace("numpy.core.", "numpy._core.")
        module, _, name = MOVED.get(full, full).rpartition(".")
        if name not in ALLOWED.get(module, "").split():
            raise pickle.UnpicklingError(f"it refers to {full}")
        return CHECKED.get(name) or getattr(importlib.import_module(module), name)

    def load_build(self) -> None:
        if callable(self.stack[-2]):  # a class or function, which everything else uses too
            raise pickle.UnpicklingError("it changes a class or a function")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _checked(data: tuple) -> Any:
    """An array of pyarrow; one that leads out of its memory is refused."""
    array = importlib.import_module("pyarrow.lib")._restore_array(data)
    array.validate(full=True)
    return array


# In the place of what does more; protocol 2 has no bytes, but text in Latin-1.
CHECKED = {"_restore_array": _checked, "encode": lambda text, *_: text.encode("latin-1")}


def read_pickle(path: Path) -> Records:
    """Rows of a pickled table, its index too where it has a name. Raises EgoGenError."""
    need_package("pandas", str(path))
    import pandas

    try:
        frame = Unpickler(io.BytesIO(path.read_bytes())).load()
        if type(frame) is not pandas.DataFrame:
            raise ValueError(f"found {type(frame).__name__}")
        frame = frame.reset_index() if frame.index.name else frame
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    except Exception as error:  # whatever pandas says to parts that do not fit
        raise EgoGenError(f"{path}: not a pickled table of pandas ({error})") from None
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)]

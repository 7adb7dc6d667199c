"""Tables that other programs wrote, as rows of values by column: CSV, JSON lines, ..."""

import csv
import importlib
import io
import pickle
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egogen.atomic import parse_json
from egogen.errors import EgoGenError, need_package

Records = list[tuple[str, dict[str, Any]]]  # ("row 12", values by column)
# What a pickled table of pandas may refer to.
ALLOWED = tomllib.loads(Path(__file__).with_name("pickles.toml").read_text(encoding="utf-8"))
MOVED = {"pandas.core.indexes.numeric.Int64Index": "pandas.Index"}  # names of before -> today's
_InPython: Any = pickle._Unpickler  # the library's own, whose opcodes can be replaced


def read_records(path: Path) -> Records:
    """Rows of a file by its ending: .parquet, .jsonl, .pkl, else CSV (whose values are all text).

    Raises EgoGenError for a file that is not what its ending says.
    """
    if not path.exists():
        raise EgoGenError(f"{path}: no such file")
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    if path.suffix.lower() == ".jsonl":
        return _json_lines(path)
    if path.suffix.lower() in (".pkl", ".pickle"):
        return read_pickle(path)
    return [(where, dict(values)) for where, values in read_csv(path)]


def need_columns(
    path: Path, columns: Sequence[str], needed: Sequence[str], known: Sequence[str] | None = None
) -> None:
    """Raises EgoGenError unless all `needed` are there, each once, and nothing beyond `known`."""
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice or not set(needed) <= set(columns) or known and not set(columns) <= set(known):
        others = [name for name in known or () if name not in needed]
        optional = f", and optionally {', '.join(others)}" if others else ""
        there = textwrap.shorten(", ".join(columns), 250, placeholder=" ...") or "none"
        names = ", ".join(needed) or "names"
        raise EgoGenError(f"{path}: columns are {there}; expected {names}{optional}, each once")


def read_csv(
    path: Path, needed: Sequence[str] = (), known: Sequence[str] | None = None
) -> list[tuple[str, dict[str, str]]]:
    """Rows of text; blanks, empty last columns and empty rows left out, columns in lower case.

    Raises EgoGenError as `need_columns` does, and for a row that does not fit the header.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)  # spreadsheets of some languages write ";"
            reader = csv.reader(file, skipinitialspace=True, delimiter=delimiter)
            lines = [(reader.line_num, [value.strip() for value in line]) for line in reader]
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EgoGenError(f"{path}: not a CSV table in UTF-8 ({error})") from None
    lines = [(number, line) for number, line in lines if any(line)]
    columns = [name.casefold() for name in _cut(lines[0][1])] if lines else []
    need_columns(path, columns, needed, known)
    bad = [number for number, line in lines if not len(_cut(line)) <= len(columns) <= len(line)]
    if bad:
        raise EgoGenError(f"{path}: row {bad[0]}: has more or fewer fields than the header")
    return [(f"row {n}", dict(zip(columns, line, strict=False))) for n, line in lines[1:]]


def _cut(line: list[str]) -> list[str]:
    """Without empty fields at its end."""
    return line[: max((k for k, value in enumerate(line, 1) if value), default=0)]


def _parquet(path: Path) -> Records:
    need_package("pyarrow", str(path))
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise EgoGenError(f"{path}: not a parquet table ({error})") from None
    return [(f"row {number}", values) for number, values in enumerate(rows, 1)]


def _json_lines(path: Path) -> Records:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise EgoGenError(f"{path}: unreadable ({error.strerror})") from None
    rows: Records = []
    for number, line in enumerate(lines, 1):
        value = parse_json(line, f"{path}: line {number}") if line.strip() else {}
        if not isinstance(value, dict):
            raise EgoGenError(f"{path}: line {number}: expected an object")
        if value:
            rows.append((f"line {number}", value))
    return rows


class Unpickler(_InPython):
    """Of a table, read without running anything but what makes one.

    Calls what pickles.toml allows, and gives a state only to what that made.
    """

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

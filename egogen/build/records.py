"""Tables that other programs wrote, as rows of values by column: CSV, JSON lines, ..."""

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egogen.atomic import parse_json
from egogen.errors import EgoGenError, need_package

Records = list[tuple[str, dict[str, Any]]]  # ("row 12", values by column)


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
        from egogen.build.pickled import read_pickle

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

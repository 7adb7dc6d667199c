"""Files appear complete or not at all: temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egogen.errors import EgoGenError

if TYPE_CHECKING:
    import numpy as np

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes that name, on any failure it goes.

    The file is flushed to disk before the rename, so after a crash `path` is either the old file or
    the complete new one. The folder is made when missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, so that writers which choose a format by it (Pillow, numpy) still do.
    name = f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}{path.suffix}"
    temporary = path.parent / name
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 4) -> None:
    """Write strict JSON (no NaN or Infinity), UTF-8, with a final newline."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_npy(path: str | os.PathLike, array: np.ndarray) -> None:
    import numpy as np  # a third of the time in which a command starts; many need none

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; when missing, not JSON, or with a key that stands twice: an error line."""
    path = Path(path)

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = min(key for key in keys if keys.count(key) > 1)
            raise EgoGenError(f"{path}: key {twice!r} stands twice in one object, expected once")
        return dict(pairs)

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise EgoGenError(f"{path}: expected a JSON file, found a folder") from None
    except UnicodeDecodeError:
        raise EgoGenError(f"{path}: not a UTF-8 text file, expected JSON") from None
    try:
        return json.loads(text, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise EgoGenError(f"{path}: not valid JSON ({error})") from None

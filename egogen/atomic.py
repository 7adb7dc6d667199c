"""Files appear complete or not at all: temporary name in the same folder, fsync, rename."""

import csv
import gc
import io
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egogen.errors import EgoGenError

if TYPE_CHECKING:
    import numpy as np

TEMPORARY_SUFFIX = ".tmp"
DEEPEST = 100  # lists and objects in one another in a JSON file: what writes them back recurses too
# An escape in a JSON text; group 1 is half of the pair that stands for one character.
HIGH, LOW = r"u[dD][89abAB][0-9a-fA-F]{2}", r"u[dD][c-fC-F][0-9a-fA-F]{2}"
ESCAPE = re.compile(rf"\\(?:{HIGH}\\{LOW}|({HIGH}|{LOW})|.)", re.DOTALL)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes that name, on any failure it goes.

    The file is flushed to disk before the rename, so after a crash `path` is either the old file or
    the complete new one. The folder is made when missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, so that writers which choose a format by it (Pillow, numpy) still do;
    # the rest does not grow with the name, which may be as long as the file system takes.
    suffix = path.suffix if len(path.suffix) < 16 else ""
    name = f".{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}{suffix}"
    temporary = path.parent / name
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        as_umask_says(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_umask_says(path: Path) -> None:
    """Give a file, or all below a folder, the mode that a new file gets.

    safetensors makes its files for their owner alone, whatever the umask is.
    """
    private = [file for file in (path, *path.rglob("*")) if file.is_file()]
    private = [file for file in private if not file.stat().st_mode & 0o077]
    if private:
        probe = private[0].with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        probe.touch(exist_ok=False)
        mode = probe.stat().st_mode & 0o777
        probe.unlink()
        for file in private:
            file.chmod(mode)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """As UTF-8; what that cannot say (bytes of file names that are none) with a backslash."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 4) -> None:
    """Write strict JSON (no NaN or Infinity), UTF-8, with a final newline."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | os.PathLike, rows: Iterable[Iterable]) -> None:
    """Write a table, the names of its columns first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_npy(path: str | os.PathLike, array: "np.ndarray") -> None:
    import numpy as np  # a third of the time in which a command starts; many need none

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = min(key for key in keys if keys.count(key) > 1)
        raise EgoGenError(f"key {twice!r} stands twice in one object, expected once")
    return found


def _infinite(value: Any) -> bool:
    """Whether a float in it is. Raises ValueError for what is more than DEEPEST deep."""
    level, found = [[value]], False
    for _ in range(DEEPEST + 1):
        inside = [x.values() if type(x) is dict else x for x in level]
        found = found or any(math.inf in x or -math.inf in x for x in inside)
        level = [item for x in inside for item in x if type(item) in (dict, list)]
        if not level:
            return found
    raise ValueError(f"more than {DEEPEST} lists or objects in one another")


def _place_of_nan(value: Any) -> list | None:
    """Keys and list positions on the way to the first number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return []
    items = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else items:
        if (place := _place_of_nan(item)) is not None:
            return [key, *place]
    return None


def read_json(path: str | os.PathLike, finite: bool = True, keep: Callable = dict) -> Any:
    """Read a JSON file in UTF-8, or in UTF-16 or 32 with a byte order mark, as `parse_json` does.

    Raises EgoGenError when it is missing or a folder.
    """
    try:
        return parse_json(Path(path).read_bytes(), str(path), finite, keep)
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise EgoGenError(f"{path}: expected a JSON file, found a folder") from None


def read_object(
    path: str | os.PathLike, what: str = "an object", needed: bool = True, keep: Callable = dict
) -> dict[str, Any]:
    """The object in a JSON file; {} for a file that is not there, where none is `needed`.

    Raises EgoGenError for anything else, as `read_json` does.
    """
    value = read_json(path, keep=keep) if needed or Path(path).exists() else {}
    if not isinstance(value, dict):
        raise EgoGenError(f"{path}: expected {what}, found {type(value).__name__}")
    return value


def parse_json(data: bytes, where: str, finite: bool = True, keep: Callable = dict) -> Any:
    """The value that a JSON text stands for. A half of a pair of escapes, as in a text that was cut
    within an emoji, is read as U+FFFD: no encoder would take it. `keep` gives what is wanted of an
    object, from the innermost on: a large file need not be held as a whole.

    Raises EgoGenError for what is not JSON, a key that stands twice, lists and objects more than
    DEEPEST deep and, unless `finite` is false, NaN, Infinity and numbers that are too large.
    """
    odd = []
    collected = gc.isenabled()

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            odd.append(text)
        return int(text) if math.isfinite(value) and text.lstrip("-").isdigit() else value

    gc.disable()  # it would look through all that is there, again and again as that grows
    try:
        text = data.decode(json.detect_encoding(data))
        del data  # a file may take a good part of the memory
        if re.search(r"\\u[dD][89a-fA-F]", text):
            text = ESCAPE.sub(lambda match: r"\ufffd" if match[1] else match[0], text)
        hook = _no_key_twice if keep is dict else lambda pairs: keep(_no_key_twice(pairs))
        kept: Any = {"object_pairs_hook": hook, "parse_constant": number}
        load = partial(json.loads, text, parse_int=number, **kept)
        value = load()
        if _infinite(value) and finite:  # rare; a call for every float takes most of the time
            odd.clear()
            load(parse_float=number)
    except EgoGenError as error:
        raise EgoGenError(f"{where}: {error}") from None
    except UnicodeDecodeError:
        raise EgoGenError(f"{where}: not a UTF-8 text file, expected JSON") from None
    except (ValueError, RecursionError) as error:
        raise EgoGenError(f"{where}: not valid JSON ({error})") from None
    finally:
        if collected:
            gc.enable()
    if odd and finite:
        place = "/".join(map(str, _place_of_nan(value) or ()))
        raise EgoGenError(f"{where}: entry {place}: {odd[0][:40]}, expected a finite number")
    return value

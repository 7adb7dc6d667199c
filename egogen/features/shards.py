"""Named arrays in few large safetensors files, written by parallel jobs that may be killed.

Why safetensors: it is a dependency already and well kept, a file is one header and raw values, so
that one entry is read by its name from a memory map (no index file that could disagree, no lock, no
code executed), and half precision is native. A file cannot be appended to, so a store grows by
files: each batch becomes a small *piece*, and when a writer's pieces hold SHARD entries they are
copied into one *shard* and removed. A kill loses the batch in hand at most.

Files are named `<nanoseconds>-<writer>.safetensors`; when an entry stands in two files, as after a
kill between copying and removing, the later file holds.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from egogen import EgoGenError, atomic_path

SHARD = 512  # entries of a full file: 256 MiB of (256, 1024) half-precision vision features
PATTERN = "[0-9]*-*.safetensors"


def _files(root: Path) -> list[Path]:
    """Oldest first."""
    return sorted(root.glob(PATTERN), key=lambda path: path.name)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except FileNotFoundError:
        raise EgoGenError(f"{path}: went away while it was to be read; try again") from None
    except (OSError, SafetensorError) as error:
        raise EgoGenError(f"{path}: not a readable safetensors file ({error})") from None


class ShardReader:
    """Random access by name to all files of a folder. Safe to use after a fork or a pickle."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        self._files: list[Path] = []
        self._place: dict[str, Any] = {}  # entry -> its open file (safetensors names no type)
        self.checked: set[str] = set()  # entries of these files whose values a reader has checked

    def __reduce__(self) -> tuple:
        return ShardReader, (self.root,)  # maps do not travel to other processes

    def __contains__(self, name: str) -> bool:
        """Looks at the folder again for what was not there."""
        if name not in self._place and (files := _files(self.root)) != self._files:
            place: dict[str, Any] = {}
            for path in files:
                handle = _open(path)
                place.update(dict.fromkeys(handle.keys(), handle))
            self._files, self._place, self.checked = files, place, set()
        return name in self._place

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the values. Raises KeyError when there is no such entry."""
        if name not in self:
            raise KeyError(name)
        return tuple(self._place[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """A copy of the entry. Raises KeyError when there is no such entry."""
        if name not in self:
            raise KeyError(name)
        try:
            return self._place[name].get_tensor(name)
        except TypeError as error:  # bfloat16
            raise EgoGenError(f"{self.root}: feature {name}: {error}, expected float16") from None


class ShardWriter:
    """Adds entries to a folder. Several writers may work there at a time under different names."""

    def __init__(self, root: str | os.PathLike, writer: str, shard: int = SHARD):
        self.root, self.writer, self.shard = Path(root), writer, shard
        own = [path for path in _files(self.root) if path.name.endswith(f"-{writer}.safetensors")]
        counts = {path: len(_open(path).keys()) for path in own}
        # This writer's files that are not full -> entries.
        self.pieces = {path: count for path, count in counts.items() if count < shard}

    def write(self, items: Mapping[str, np.ndarray]) -> None:
        """All of `items`, or on a failure none, in a file of their own."""
        if not items:
            return
        latest = max([int(path.name[:19]) for path in self.pieces], default=0)
        stamp = max(time.time_ns(), latest + 1)  # clocks may be set back
        path = self.root / f"{stamp:019d}-{self.writer}.safetensors"
        _save(path, items)
        self.pieces[path] = len(items)
        if sum(self.pieces.values()) >= self.shard:
            self.join()

    def join(self) -> None:
        """One file in place of all small ones, under the name of the latest of them."""
        paths = sorted(self.pieces)
        if len(paths) > 1:
            together: dict[str, np.ndarray] = {}
            for path in paths:
                together |= load_file(path)
            _save(paths[-1], together)
            for path in paths[:-1]:
                path.unlink()
            self.pieces = {paths[-1]: len(together)}
        self.pieces = {path: n for path, n in self.pieces.items() if n < self.shard}


def _save(path: Path, items: Mapping[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary:
        save_file({name: np.ascontiguousarray(rows) for name, rows in items.items()}, temporary)

"""The feature store: a folder of one named feature, such as "image" or "text", of source frames.

Stage 1 writes a store per feature and stage 2 is conditioned on its rows. Two layouts, read through
the same functions:

released   one half-precision .npy per source frame, below folders like those of the frames; image
           features are the projector's output, (256, 5120) at full size
compact    few large files (`egogen.features.shards`); image features are the vision tower's output,
           (256, 1024) at full size, with the projector once beside them
           (`egogen.features.projector`), and text features have at most TEXT_ROWS rows

`feature_info.json` in the store's folder says what made it and which layout it has; a folder
without it has the released one. Example:

    writer = FeatureWriter("features/image/val", "image", "released", "1-of-1")
    writer.write({"clip/0/frame.jpg": rows})  # (n, d), stored as float16
    open_store("features/image/val").read("clip/0/frame.jpg", width=5120, rows=256)

Letters: P patches, n rows of any feature, C vision width, d width that stage 2 gets.
"""

import os
import posixpath
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egogen import EgoGenError, record_provenance
from egogen.actions import safe_relative
from egogen.atomic import read_object, write_npy
from egogen.features.shards import ShardReader, ShardWriter

if TYPE_CHECKING:  # torch takes a second to import, and most commands that read actions need none
    from egogen.features.projector import Projector

TEXT_ROWS = 77  # stage 2 never uses more
COMPACT_ROWS = {"text": TEXT_ROWS}  # feature -> rows that a compact store keeps (others: all)
INFO_FILE = "feature_info.json"
LAYOUTS = ("released", "compact")


def feature_path(root: str | os.PathLike, image_0: str) -> Path:
    """Where the feature of source frame `image_0` (relative to its folder) lies under `root`."""
    return Path(root, f"{feature_key(image_0, f'{root}: image_0')}.npy")


def find_feature(root: Path, image_0: str) -> str:
    """Like `feature_path`, and finds files whose every "jpg", in folders too, became "npy"."""
    # Text: to make a Path takes a tenth of the time that reading the file takes.
    path = f"{root}/{feature_key(image_0, f'{root}: image_0')}.npy"
    if "jpg" not in image_0.removesuffix("jpg") or os.path.exists(path):
        return path
    released = f"{root}/{safe_relative(image_0.replace('jpg', 'npy'), str(root))}"
    return released if os.path.exists(released) else path


class ReleasedStore:
    """One .npy per frame. `projector` is None: what is stored is what stage 2 gets."""

    projector = None

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)

    def stored(self, image_0: str, width: int | None = None, rows: int | None = None) -> np.ndarray:
        """(n, d) rows, float16 or, where a file has more, float32; `width` (d) and `rows` (n) are
        checked when given.

        Released text features of shape (n, k, d) give their last entry along k; one of (d,), which
        the released code wrote for one-token answers, gives (1, d). Nothing pickled is ever loaded.
        """
        path = find_feature(self.root, image_0)
        return as_feature(_load(path, image_0), path, width, rows)

    read = stored

    def shape(self, image_0: str) -> tuple[int, int]:
        """(n, d), from the header; a file cut short is an error, values are not looked at."""
        path = find_feature(self.root, image_0)
        array = _load(path, image_0, mmap_mode="r")
        found = _as_rows(array, path)
        _check_shape(found.shape, path, None, None, array.shape)
        return found.shape


class CompactStore:
    """Shards. What is stored of an image is (P, C) where there is a `projector` to (P, d)."""

    def __init__(self, root: str | os.PathLike, info: Mapping[str, Any]):
        self.root, self.info = Path(root), info
        self.shards = ShardReader(root)

    @cached_property
    def projector(self) -> "Projector | None":
        """What makes rows for stage 2 of what is stored; None where that is stored itself."""
        if not _has_projector(self.info):
            return None
        from egogen.features.projector import read_projector

        return read_projector(self.root)

    def stored(self, image_0: str, width: int | None = None, rows: int | None = None) -> np.ndarray:
        """(P, C) or (n, d) float16; `width` (d, after the projector) and `rows` are checked."""
        where = _called(self.root, image_0)
        key = self._key(image_0)
        array = _native(self.shards.read(key), where)
        self._check_rows(array.shape, image_0, width, rows)
        if key not in self.shards.checked:  # once a file that is open: reading takes half as long
            _check_finite(array, where)
            self.shards.checked.add(key)
        return array

    def read(self, image_0: str, width: int | None = None, rows: int | None = None) -> np.ndarray:
        """What stage 2 gets, (n, d) float16; an image's rows go through the projector here."""
        array = self.stored(image_0, width, rows)
        if self.projector is None:
            return array
        import torch

        projected = self.projector(torch.from_numpy(array)).numpy()
        return _half(projected, _called(self.root, image_0))

    def shape(self, image_0: str) -> tuple[int, int]:
        """(n, d) of `read`, without reading."""
        shape = self.shards.shape(self._key(image_0))
        self._check_rows(shape, image_0, None, None)
        return shape[0], shape[1] if self.projector is None else self.projector.output_width

    def _key(self, image_0: str) -> str:
        key = posixpath.splitext(image_0)[0]  # as it is, unless the path has "//" or "."
        if key not in self.shards and (key := feature_key(image_0)) not in self.shards:
            raise EgoGenError(f"{self.root}: no feature of frame {image_0} in its shards")
        return key

    def _check_rows(self, shape: tuple, image_0: str, width: int | None, rows: int | None) -> None:
        where, projector = _called(self.root, image_0), self.projector
        _check_shape(shape, where, width if projector is None else projector.input_width, rows)
        if projector is not None and width not in (None, projector.output_width):
            made = projector.output_width
            raise EgoGenError(f"{where}: width {made} for stage 2, expected {width}")


def _called(root: Path, image_0: str) -> str:
    """What errors call an entry of a compact store."""
    return f"{root}: feature of frame {image_0}"


def _has_projector(info: Mapping[str, Any]) -> bool:
    """Whether a compact store holds what goes into a projector; image stores do by default."""
    return bool(info.get("projector", info.get("kind") == "image"))


def feature_key(image_0: str, where: str = "image_0") -> str:
    """The name of a frame's entry in shards: its path without the suffix."""
    return posixpath.splitext(posixpath.normpath(safe_relative(image_0, where)))[0]


def open_store(root: str | os.PathLike) -> ReleasedStore | CompactStore:
    """The store in a folder, whichever layout it has; opened once and kept."""
    info = os.path.join(root, INFO_FILE)
    return _open_store(str(root), os.stat(info).st_mtime_ns if os.path.exists(info) else 0)


@lru_cache(maxsize=64)
def _open_store(root: str, stamp: int) -> ReleasedStore | CompactStore:
    info = read_info(root)
    return CompactStore(root, info) if info.get("layout") == "compact" else ReleasedStore(root)


def read_info(root: str | os.PathLike) -> dict[str, Any]:
    """What made the store, {} when it does not say. Raises EgoGenError for unknown layouts."""
    path = Path(root) / INFO_FILE
    info = read_object(path, needed=False)
    layout = info.get("layout", "released")
    if layout not in LAYOUTS:
        raise EgoGenError(f"{path}: layout {layout!r}, expected one of {', '.join(LAYOUTS)}")
    return info


def as_feature(
    array: np.ndarray, where: Any, width: int | None = None, rows: int | None = None
) -> np.ndarray:
    """(n, d) of an array as the released code wrote it, checked; errors begin with `where`.

    Half precision stays, all other floating point becomes float32, in this machine's byte order:
    the one way of files and of arrays that a caller gives.
    """
    found = _as_rows(_native(array, where), where)
    _check_shape(found.shape, where, width, rows, array.shape)
    _check_finite(found, where)
    return found


def load_feature(
    path: str | os.PathLike, width: int | None = None, rows: int | None = None
) -> np.ndarray:
    """The feature in one .npy, (n, d) float; `width` and `rows` are checked when given."""
    return as_feature(_load(Path(path)), path, width, rows)


def write_feature(root: str | os.PathLike, image_0: str, rows: np.ndarray) -> Path:
    """Write rows (n, d) as float16, atomically. Raises EgoGenError unless finite and n, d >= 1."""
    path = feature_path(root, image_0)
    write_npy(path, _half(rows, path))
    return path


def record_store(
    root: Path, name: str, layout: str, info: Mapping[str, Any], projector: "Projector | None"
) -> None:
    """Record what made the store of the feature `name`, or check the record that is there.

    `info` is the provenance: what the rows depend on, and their `width`. A `projector`, for compact
    stores only, is written before the record that says so. Raises EgoGenError for a store that
    something else made.
    """
    shape: dict[str, Any] = {"kind": name, "layout": layout, "dtype": "float16"}
    if layout == "compact":
        if name in COMPACT_ROWS:
            shape["text_rows"] = COMPACT_ROWS[name]
        if _has_projector(shape) != (projector is not None):
            shape["projector"] = projector is not None
    if projector is not None:
        from egogen.features.projector import keep_projector

        shape["vision_width"] = projector.input_width
        keep_projector(root, projector)
    record_provenance(root / INFO_FILE, shape | dict(info))


class FeatureWriter:
    """Writes the feature `name` of batches of frames: a .npy each, or shards.

    `writer` is this job's own name among parallel ones. Shards get at most COMPACT_ROWS rows.
    """

    def __init__(self, root: str | os.PathLike, name: str, layout: str, writer: str):
        self.root, self.most_rows = Path(root), COMPACT_ROWS.get(name)
        self.shards = ShardWriter(root, writer) if layout == "compact" else None

    def write(self, items: Mapping[str, np.ndarray]) -> None:
        """{image_0: (n, d)}, or (P, C) where the store has a projector."""
        if self.shards is None:
            for image_0, rows in items.items():
                write_feature(self.root, image_0, rows)
        else:
            kept = ((name, rows[: self.most_rows]) for name, rows in items.items())
            half = {feature_key(n): _half(rows, _called(self.root, n)) for n, rows in kept}
            self.shards.write(half)

    def close(self) -> None:
        """Join what has been written in small files."""
        if self.shards is not None:
            self.shards.join()


def _load(path: str | Path, image_0: str = "", **options) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False, **options)
    except FileNotFoundError:
        frame = f" (for frame {image_0})" if image_0 else ""
        raise EgoGenError(f"{path}: no such feature file{frame}") from None
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError) as error:
        raise EgoGenError(f"{path}: not a readable .npy array ({error})") from None
    _check_floating(array, path)
    return array


def _check_floating(array: Any, where: Any) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        found = getattr(array, "dtype", type(array))
        raise EgoGenError(f"{where}: expected a floating point array, found {found}")


def _native(array: np.ndarray, where: Any) -> np.ndarray:
    _check_floating(array, where)
    with np.errstate(over="ignore"):  # too large for float32 is infinite, and refused
        return np.asarray(array, np.float16 if array.dtype.itemsize == 2 else np.float32, order="C")


def _as_rows(array: np.ndarray, where: Any) -> np.ndarray:
    if array.ndim == 3 and array.shape[1] > 0:
        # The released code wrote an answer of one token as (d,).
        if len(array) == 1 < array.shape[1]:
            expected = "(n, d): without the first axis where it is that of a batch of one"
            raise EgoGenError(f"{where}: feature of shape {array.shape}, expected {expected}")
        return array[:, -1, :]
    return array[None] if array.ndim == 1 else array


def _half(rows: np.ndarray, where: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large for half precision is infinite, and refused below
        half = np.asarray(rows).astype(np.float16)
    _check_shape(half.shape, where, None, None)
    _check_finite(half, where)
    return half


def _check_shape(
    shape: tuple, where: Any, width: int | None, rows: int | None, told: tuple | None = None
) -> None:
    """`told`: the shape that the error names, where it is another."""
    expected = f"({rows if rows is not None else 'n'}, {width if width is not None else 'd'})"
    fits = len(shape) == 2 and min(shape) >= 1
    if not fits or width not in (None, shape[1]) or rows not in (None, shape[0]):
        raise EgoGenError(f"{where}: feature of shape {tuple(told or shape)}, expected {expected}")


def _check_finite(array: np.ndarray, where: Any) -> None:
    if array.dtype == np.float16:
        # numpy's own test takes thirty times as long for half precision. By their bits, infinity
        # and NaN are the largest numbers of either sign: 0x7c00 and more, 0xfc00 and more.
        array = np.ascontiguousarray(array)
        finite = array.view(np.int16).max() < 0x7C00 and array.view(np.uint16).max() < 0xFC00
    else:
        finite = np.isfinite(array).all()
    if not finite:
        raise EgoGenError(f"{where}: feature holds NaN or infinity, expected finite numbers")

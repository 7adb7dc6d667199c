"""The feature store of the released layout: one half-precision .npy per source frame and kind."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np

from egogen.actions import inside, safe_relative
from egogen.atomic import write_npy
from egogen.errors import EgoGenError

TEXT_ROWS = 77  # stage 2 never uses more


def feature_path(root: str | os.PathLike, image_0: str) -> Path:
    """Where the feature of source frame `image_0` (relative to its folder) lies under `root`."""
    relative = PurePosixPath(safe_relative(image_0, f"{root}: image_0"))
    return inside(root, str(relative.with_suffix(".npy")))


def find_feature(root: str | os.PathLike, image_0: str) -> Path:
    """Like `feature_path`, and finds files whose every "jpg", in folders too, became "npy"."""
    path = feature_path(root, image_0)
    released = inside(root, image_0.replace("jpg", "npy"))
    return released if released.exists() and not path.exists() else path


def write_feature(root: str | os.PathLike, image_0: str, rows: np.ndarray) -> Path:
    """Write rows (n, d) as float16, atomically. Raises EgoGenError unless finite and n, d >= 1."""
    path = feature_path(root, image_0)
    with np.errstate(over="ignore"):  # too large for half precision is infinite, and refused below
        half = np.asarray(rows).astype(np.float16)
    _check(half, path, None, None)
    write_npy(path, half)
    return path


def read_feature(
    root: str | os.PathLike, image_0: str, width: int | None = None, rows: int | None = None
) -> np.ndarray:
    """Read (n, d) float16 rows; `width` (d) and `rows` (n) are checked when given.

    Released text features of shape (n, k, d) give their last entry along k; one of (d,), which
    the released code wrote for one-token answers, gives (1, d). Nothing pickled is ever loaded.
    """
    path = find_feature(root, image_0)
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such feature file (for frame {image_0})") from None
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError) as error:
        raise EgoGenError(f"{path}: not a readable .npy array ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise EgoGenError(
            f"{path}: expected a floating point array, found {getattr(array, 'dtype', type(array))}"
        )
    if array.ndim == 3 and array.shape[1] > 0:
        array = array[:, -1, :]
    elif array.ndim == 1:
        array = array[None]
    _check(array, path, width, rows)
    return array.astype(np.float16, copy=False)


def _check(array: np.ndarray, path: Path, width: int | None, rows: int | None) -> None:
    expected = f"({rows if rows is not None else 'n'}, {width if width is not None else 'd'})"
    wrong = array.ndim != 2 or min(array.shape) < 1
    wrong = (
        wrong
        or (width is not None and array.shape[1] != width)
        or (rows is not None and array.shape[0] != rows)
    )
    if wrong:
        raise EgoGenError(f"{path}: feature of shape {array.shape}, expected {expected}")
    if not np.isfinite(array).all():
        raise EgoGenError(f"{path}: feature holds NaN or infinity, expected finite numbers")

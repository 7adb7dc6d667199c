"""Inception features of ground truth frames, kept between runs: FID's reference half, for nothing.

A file is named by everything that decides its content: each frame's name and content, in order, the
weight file and the kind of device. It holds features, not their mean and covariance: (n, 2048)
numbers are fewer than a covariance where frames are few, and intervals need them frame by frame.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from egogen.atomic import write_npy
from metrics.digests import content_digest
from metrics.frame_pairs import Pair

FOLDER = "fid_reference"  # beside the weight file


def name_of(pairs: Sequence[Pair], weights: Path, device: str) -> str | None:
    """File name; None when a pair does not know the content of its ground truth frame."""
    if not all(pair.target_digest for pair in pairs):
        return None
    digest = hashlib.sha256(f"{device.split(':')[0]}\n{content_digest(weights)}\n".encode())
    for pair in pairs:
        digest.update(f"{pair.key}\0{pair.target_digest}\n".encode())
    return f"{digest.hexdigest()}.npy"


def kept(
    pairs: Sequence[Pair], weights: Path, device: str, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """Features of the pairs' ground truth, (n, d) float64 of float32 precision: read or computed.

    A damaged file is computed again. Where nothing can be written, a line says so.
    """
    name = name_of(pairs, weights, device)
    if name is None:
        return compute()
    path = weights.parent / FOLDER / name
    try:
        found = np.load(path, allow_pickle=False)
        if found.ndim == 2 and len(found) == len(pairs) and np.isfinite(found).all():
            print(f"kept: features of {len(pairs)} ground truth frames, {path}")
            return found.astype(np.float64)
    except (OSError, ValueError, EOFError):
        pass
    features = compute()
    try:
        write_npy(path, features.astype(np.float32))
    except OSError as error:
        print(f"note: {path}: not kept for the next run ({os.strerror(error.errno or 0)})")
    return features

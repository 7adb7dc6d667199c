"""Frechet Inception distance, with pytorch-fid's own Inception as in the released code.

Other libraries resize like TensorFlow 1 and give other features (1037.80 for 1035.66 on the tests'
images).

The features of the ground truth are kept beside the weight file for the next run. Such a file is
named by all that decides its content: each frame's name and content, in order, the weights and the
kind of device. It holds features instead of their mean and covariance: (n, 2048) numbers are fewer
than a covariance where frames are few, and intervals need them frame by frame.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from egogen.atomic import write_npy
from egogen.errors import EgoGenError
from egogen.frames import read_rgb
from metrics.frame_pairs import Pair
from metrics.images import batches, read_ahead, squeezed, to_tensor
from metrics.loading import load_state_dict
from metrics.registry import METRICS, Measured, Settings
from metrics.results import content_digest

PARTS = ("Conv2d_", "Mixed_", "fc.")  # what the names of the weights begin with
SIDE = 299  # pixels
FEATURES = 2048  # pool features; with fewer images than that the covariance is singular
FOLDER = "fid_reference"  # beside the weight file


def inception(path: Path) -> torch.nn.Module:
    """The network up to its pool features, from a pt_inception weight file."""
    from pytorch_fid import inception as library

    state = load_state_dict(path, PARTS)
    # The library fetches weights when it builds the network; it gets them from the file instead.
    with mock.patch.object(library, "load_state_dict_from_url", lambda *_, **__: state):
        try:
            network = library.InceptionV3([3], resize_input=False, normalize_input=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise EgoGenError(f"{path}: not the FID Inception weights ({reason})") from None
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def pool_features(network: torch.nn.Module, images: Sequence[torch.Tensor]) -> np.ndarray:
    """Images (3, H, W) in [0, 1], of any sizes -> (n, 2048) float64."""
    device = next(network.parameters()).device
    batch = squeezed(images, SIDE, "bilinear", device)  # (n, 3, 299, 299)
    return network(batch)[0][:, :, 0, 0].double().cpu().numpy()


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of two sets of features X1 (n, d) and X2 (m, d), n, m >= 2, float64.

    |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr sqrt(S1 S2) (Heusel et al. 2017, equation 6). The last
    term is the sum of the singular values of X2 X1^T / sqrt((n-1)(m-1)), both centred, which is
    exact for singular covariances too, where a matrix square root is not.
    """
    mean_term = np.sum((first.mean(0) - second.mean(0)) ** 2)
    centred = [rows - rows.mean(0) for rows in (first, second)]
    scaled = [rows / np.sqrt(len(rows) - 1) for rows in centred]
    traces = sum(np.sum(rows**2) for rows in scaled)
    if max(len(first), len(second)) > first.shape[1]:  # R^T R = X^T X, with at most d rows
        scaled = [np.linalg.qr(rows, mode="r") for rows in scaled]
    cross = np.linalg.svd(scaled[1] @ scaled[0].T, compute_uv=False).sum()
    return float(mean_term + traces - 2 * cross)


def reference_features(
    pairs: Sequence[Pair], weights: Path, device: str, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """Features of the pairs' ground truth, (n, d) float64 of float32 precision: read or computed.

    A damaged file is computed again. Where nothing can be written, a line says so.
    """
    digest = hashlib.sha256(f"{device.split(':')[0]}\n{content_digest(weights)}\n".encode())
    for pair in pairs:
        digest.update(f"{pair.key}\0{pair.target_digest}\n".encode())
    path = weights.parent / FOLDER / f"{digest.hexdigest()}.npy"
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


def measure(pairs: Sequence[Pair], settings: Settings) -> Measured:
    """`fid` of all generated against all ground truth frames, in one number, and its features."""
    if len(pairs) < 2:
        raise EgoGenError(f"fid: {len(pairs)} frame, expected at least 2 (a covariance)")
    if len(pairs) <= FEATURES:
        few = f"FID of {len(pairs)} frames, fewer than {FEATURES + 1}: biased upwards"
        advice = "compare it only with numbers from as many frames"
        print(f"warning: {few}, {advice}", file=sys.stderr)
    weights = METRICS["fid"].weight_files(settings)[0]
    network = inception(weights).to(settings.device)

    def features_of(what: str, paths: Sequence[Path]) -> np.ndarray:
        read = read_ahead(lambda path: to_tensor(read_rgb(path)), paths, settings, f"fid, {what}")
        found = (pool_features(network, batch) for batch in batches(read, settings.batch_size))
        return np.concatenate([*found])

    compute = partial(features_of, "ground truth", [pair.target for pair in pairs])
    target = reference_features(pairs, weights, settings.device, compute)
    generated = features_of("generated", [pair.generated for pair in pairs])
    features = {"generated": generated, "target": target}
    return Measured({"fid": frechet_distance(target, generated)}, features=features)

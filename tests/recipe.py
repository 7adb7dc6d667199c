"""Deterministic weights, so that golden vectors need no weight files.

Every golden output below `tests/data` was computed by the released LEGO code with its parameters
filled by `fill`. Filling a state dict of the same names and shapes gives the same numbers on any
machine: numpy's legacy RandomState stream is frozen by numpy's compatibility policy.
"""

import zlib

import numpy as np


def tensor(name: str, shape, seed: int = 0) -> np.ndarray:
    """Values for one parameter, float32, a function of (name, shape, seed) alone.

    - rank >= 2: normal, standard deviation 1/sqrt(fan_in), fan_in = product of shape[1:]
    - rank 1, name ends in 'weight' (norm gains): 1 + 0.1 * normal
    - everything else (biases, embeddings of rank 1, scalars): 0.1 * normal
    """
    rng = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    values = rng.standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) >= 2:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    if name.endswith("weight"):
        return 1 + np.float32(0.1) * values
    return np.float32(0.1) * values


def fill(shapes: dict, seed: int = 0) -> dict:
    """{name: shape} -> {name: float32 array}; leave out integer buffers and schedules."""
    return {name: tensor(name, shape, seed) for name, shape in shapes.items()}


def array(name: str, shape, seed: int = 0) -> np.ndarray:
    """Standard-normal float32 inputs (latents, noise, features) named like weights are."""
    rng = np.random.RandomState(zlib.crc32(f"input:{seed}:{name}".encode()))
    return rng.standard_normal(tuple(shape)).astype(np.float32)


def image(name: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth uint8 RGB picture (height, width, 3), so that resizing behaves as on photographs."""
    rng = np.random.RandomState(zlib.crc32(f"image:{seed}:{name}".encode()))
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(6):
            fy, fx, phase, amp = (
                rng.uniform(0.5, 6),
                rng.uniform(0.5, 6),
                rng.uniform(0, 2 * np.pi),
                rng.uniform(0.3, 1),
            )
            out[..., channel] += amp * np.sin(
                2 * np.pi * (fy * ys / height + fx * xs / width) + phase
            )
    out = (out - out.min()) / (out.max() - out.min())
    return np.round(255 * out).astype(np.uint8)

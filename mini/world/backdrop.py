"""What stays the same over a clip: wall, table and light."""

from functools import lru_cache

import numpy as np
from PIL import Image

from mini.world.kinds import WORLD

TEXTURE = 256  # side of the table's texture map, which repeats


@lru_cache(maxsize=64)
def _perspective(size: tuple[int, int], edge: int, vanish: int) -> tuple[np.ndarray, np.ndarray]:
    """Table coordinates (across, away), (H - edge, W) float32, of the pixels below row `edge`."""
    width, height = size
    rows = np.arange(edge, height, dtype=np.float32)[:, None] + 0.5 - vanish
    away = 260.0 * 256.0 / rows
    across = (np.arange(width, dtype=np.float32)[None, :] + 0.5 - width / 2) * away / 256.0
    return across, np.broadcast_to(away, across.shape)


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth noise (TEXTURE, TEXTURE) in about [-1, 1] that repeats at its edges."""
    grid = np.pad(rng.uniform(-1, 1, (rows, columns)).astype(np.float32), 1, mode="wrap")
    scale = (TEXTURE // rows, TEXTURE // columns)
    large = Image.fromarray(grid).resize(
        (grid.shape[1] * scale[1], grid.shape[0] * scale[0]), Image.Resampling.BICUBIC
    )
    return np.asarray(large)[scale[0] : -scale[0], scale[1] : -scale[1]]


def _texture(rng: np.random.Generator, table: str) -> np.ndarray:
    """Lightness factors (TEXTURE, TEXTURE), rows run away from the viewer."""
    fine = rng.standard_normal((TEXTURE, TEXTURE)).astype(np.float32)
    across = np.arange(TEXTURE)
    if table == "planks":
        boards = int(rng.choice((4, 8)))
        board = across * boards // TEXTURE
        tone = rng.uniform(-0.09, 0.09, boards).astype(np.float32)[board][None, :]
        seam = (across * boards % TEXTURE) < boards * 2.2
        grain = 0.055 * _noise(rng, 4, 64) + 0.05 * _noise(rng, 8, 128) + 0.01 * fine
        return 1 + tone + grain - 0.3 * seam[None, :]
    if table == "stone":
        coarse = 1 + 0.09 * _noise(rng, 8, 8) + 0.06 * _noise(rng, 32, 32)
        return coarse + 0.05 * _noise(rng, 128, 128) + 0.025 * fine
    if table == "cloth":
        step = int(rng.choice((32, 64)))
        stripe = ((across // (step // 2)) % 2).astype(np.float32) - 0.5
        check = 0.11 * stripe[None, :] + (0.11 * stripe[:, None] if rng.random() < 0.6 else 0)
        weave = 0.03 * (((across[:, None] + across[None, :]) % 4) < 2)
        return 1 + check + weave + 0.03 * _noise(rng, 16, 16)
    return 1 + 0.03 * _noise(rng, 8, 8) + 0.03 * fine


def _wall(rng: np.random.Generator, size: tuple[int, int], edge: int) -> np.ndarray:
    """A blurred kitchen (edge, W, 3): backsplash, tiles, dim cupboards and things out of focus."""
    width = size[0]
    small = np.empty((12, 48, 3), np.float32)
    tone = rng.uniform(0.45, 0.72) * np.array([1.0, rng.uniform(0.97, 1), rng.uniform(0.9, 1.0)])
    small[:] = tone
    if rng.random() < 0.5:  # tiles
        small[:, :: int(rng.choice((4, 6)))] *= 0.88
        small[::4] *= 0.9
    for _ in range(int(rng.integers(3, 7))):
        left, wide = int(rng.integers(0, 46)), int(rng.integers(2, 9))
        grey = rng.uniform(0.25, 0.75)
        small[int(rng.integers(0, 8)) :, left : left + wide] = grey * rng.uniform(0.94, 1.05, 3)
    small[-1] *= 0.75
    image = Image.fromarray((np.clip(small, 0, 1) * 255).astype(np.uint8))
    image = image.resize((width, max(edge, 1)), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


def backdrop(rng: np.random.Generator, size: tuple[int, int], table: str) -> np.ndarray:
    """The empty scene (H, W, 3) float32 albedo."""
    width, height = size
    edge = int(height * rng.choice((0.12, 0.14, 0.16, 0.18)))
    across, away = _perspective(size, edge, -int(rng.choice((60, 90, 130))))
    texture = _texture(rng, table)
    turn = rng.choice((0.0, 0.0, 0.12, -0.12))
    shift = rng.uniform(0, TEXTURE, 2)
    columns = (across * 1.1 + turn * away + shift[0]).astype(np.int32) % TEXTURE
    rows = (away * 0.9 + shift[1]).astype(np.int32) % TEXTURE
    tones = WORLD["tables"][table]
    tone = np.array(tones[rng.integers(len(tones))], np.float32)
    tone = tone * rng.uniform(0.95, 1.06)
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:edge] = _wall(rng, size, edge)
    canvas[edge:] = texture[rows, columns][..., None] * tone
    canvas[edge : edge + 3] *= np.array([1.12, 1.12, 0.8], np.float32)[:, None, None]
    return canvas


def light(rng: np.random.Generator, size: tuple[int, int], lit: float, gain: float) -> np.ndarray:
    """Factor (H, W, 3) float32 of the light on the scene: gain, tint, direction, vignette."""
    width, height = size
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    field = gain * (1 + 0.07 * lit * x - 0.03 * y) * (1 - 0.07 * (x * x + y * y))
    warm = rng.uniform(-0.03, 0.03)
    tint = np.array([1 + warm, 1.0, 1 - warm], np.float32)
    return (field[..., None] * tint).astype(np.float32)

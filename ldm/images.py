"""Between frames and network pixels: reading, and encoding of generated pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from egogen.atomic import atomic_path
from egogen.frames import read_rgb


def read_pixels(path: str | os.PathLike, resolution: int) -> Tensor:
    """A frame squeezed to a square (Lanczos, aspect ignored, as released): (3, R, R) in [-1, 1]."""
    return to_pixels(read_rgb(path), resolution)


def to_pixels(picture: Image.Image, resolution: int) -> Tensor:
    squeezed = picture.resize((resolution, resolution), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.asarray(squeezed, dtype=np.float32))
    return (2 * values / 255 - 1).permute(2, 0, 1)


def to_picture(decoded: Tensor, size: tuple[int, int], height: int, encoding: str) -> Image.Image:
    """(3, R, R), about [-1, 1] -> a picture `height` tall at the aspect of `size` (width, height).

    Bicubic without antialiasing, as released. "clamp": (x + 1) / 2 cut to [0, 1] and rounded;
    "minmax": the released stretch of each picture's own range to 0..255, truncated.
    """
    width = round(size[0] / size[1] * height)
    x = functional.interpolate(decoded[None].float(), (height, width), mode="bicubic")[0]
    if encoding == "minmax":
        values = ((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8)
    else:
        values = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def write_picture(path: str | os.PathLike, picture: Image.Image, quality: int) -> None:
    """Written whole or not at all; the suffix chooses the format (quality: JPEG only)."""
    with atomic_path(path) as temporary:
        picture.save(temporary, **({"quality": quality} if Path(path).suffix != ".png" else {}))

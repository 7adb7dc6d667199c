"""Between frames and network pixels: reading, and encoding of generated images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from egogen.atomic import atomic_path
from egogen.frames import read_rgb


def read_pixels(path: str | os.PathLike, resolution: int) -> Tensor:
    """A frame squeezed to a square (Lanczos, aspect ignored): (3, R, R) float32 in [-1, 1]."""
    return to_pixels(read_rgb(path), resolution)


def to_pixels(image: Image.Image, resolution: int) -> Tensor:
    squeezed = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.asarray(squeezed, dtype=np.float32))
    return (2 * values / 255 - 1).permute(2, 0, 1)


def to_image(decoded: Tensor, size: tuple[int, int], height: int, encoding: str) -> Image.Image:
    """(3, R, R), about [-1, 1] -> an image `height` tall at the aspect of `size` (width, height).

    Bicubic without antialiasing, as in the released code. `encoding`: "clamp" cuts (x + 1) / 2 to
    [0, 1] and rounds; "minmax", as in the released code, stretches each image's own range to
    0..255 and truncates.
    """
    width = round(size[0] / size[1] * height)
    x = functional.interpolate(decoded[None].float(), (height, width), mode="bicubic")[0]
    if encoding == "minmax":
        values = ((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8)
    else:
        values = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def write_image(path: str | os.PathLike, image: Image.Image, quality: int) -> None:
    """Written atomically; the suffix chooses the format (quality: JPEG only), JPEG where it is none
    that Pillow knows.
    """
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    with atomic_path(path) as temporary:
        options: dict[str, Any] = {} if kind == "PNG" else {"quality": quality}
        image.save(temporary, kind if kind in Image.SAVE else "JPEG", **options)

"""Between frames and network pixels: reading, and encoding of generated images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from egogen import EgoGenError, atomic_path
from egogen.frames import read_rgb, to_rgb
from ldm.schema import height_width


def read_pixels(path: str | os.PathLike, size: int | Sequence[int]) -> Tensor:
    """A frame squeezed to `size` (`height_width`) by Lanczos: (3, H, W) float32 in [-1, 1]."""
    return to_pixels(read_rgb(path), size)


def to_pixels(image: Image.Image, size: int | Sequence[int]) -> Tensor:
    squeezed = image.resize(height_width(size)[::-1], Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.asarray(squeezed, dtype=np.float32))
    return (2 * values / 255 - 1).permute(2, 0, 1)


def to_numpy(values: Tensor) -> np.ndarray:
    """Also of half precision, as float32."""
    return (values.float() if values.is_floating_point() else values).detach().cpu().numpy()


def as_photos(given: Any) -> list[Image.Image]:
    """Photographs as pipelines of diffusers take them -> upright RGB images, at least one.

    A PIL image, a path, an array (H, W, 3) or (B, H, W, 3), a tensor (3, H, W) or (B, 3, H, W), or
    a list of these. Values are uint8, or floats in [0, 1]; one channel is grey, the fourth is
    transparency.
    """
    items = list(given) if isinstance(given, list | tuple) else [given]
    photos = [photo for item in items for photo in _photos_of(item)]
    if not photos or any(0 in photo.size for photo in photos):
        raise EgoGenError("image: empty, expected at least one image with pixels")
    return photos


def _photos_of(item: Any) -> list[Image.Image]:
    if isinstance(item, Image.Image):
        return [to_rgb(item)]
    if isinstance(item, str | os.PathLike):
        return [read_rgb(item)]
    if not isinstance(item, Tensor | np.ndarray):
        raise EgoGenError(
            f"image: {type(item).__name__}, expected a PIL image, a path, an array or a tensor"
        )
    values, order = item, "(H, W, 3) or (B, H, W, 3)"
    if isinstance(values, Tensor):
        values, order = to_numpy(values), "(3, H, W) or (B, 3, H, W)"
        values = np.moveaxis(values, -3, -1) if values.ndim > 2 else values
    if values.ndim not in (2, 3, 4) or (values.ndim > 2 and values.shape[-1] not in (1, 3, 4)):
        raise EgoGenError(f"image: {type(item).__name__} {tuple(item.shape)}, expected {order}")
    if np.issubdtype(values.dtype, np.floating):
        if values.size and not (values.min() >= 0 and values.max() <= 1):  # false of NaN too
            raise EgoGenError(
                f"image: values from {values.min()} to {values.max()}, expected 0 to 1"
            )
        values = (values * 255).round().astype(np.uint8)
    if values.dtype != np.uint8:
        raise EgoGenError(f"image: values of type {values.dtype}, expected uint8 or floats")
    pictures = values if values.ndim == 4 else values[None]
    if 0 in pictures.shape:
        return []
    return [to_rgb(Image.fromarray(x[..., 0] if x.shape[2:] == (1,) else x)) for x in pictures]


def to_image(decoded: Tensor, size: tuple[int, int], height: int, encoding: str) -> Image.Image:
    """(3, H, W), about [-1, 1] -> an image `height` tall at the aspect of `size` (width, height).

    Bicubic without antialiasing, as in the released code. `encoding`: "clamp" cuts (x + 1) / 2 to
    [0, 1] and rounds; "minmax", as in the released code, stretches each image's own range to
    0..255 and truncates.
    """
    width = max(1, round(size[0] / size[1] * height))
    x = functional.interpolate(decoded[None].float(), (height, width), mode="bicubic")[0]
    if encoding == "minmax":
        values = ((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8)
    else:
        values = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def write_image(path: str | os.PathLike, image: Image.Image, quality: int) -> None:
    """Written atomically; the suffix chooses the format, JPEG where Pillow knows none for it."""
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    with atomic_path(path) as temporary:
        image.save(temporary, kind if kind in Image.SAVE else "JPEG", quality=quality)

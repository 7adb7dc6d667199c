"""Reading photographs and frames of any kind as plain RGB."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from egogen.errors import EgoGenError

BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_rgb(path: str | os.PathLike) -> Image.Image:
    """Read an image as 8-bit RGB, upright: EXIF rotation applied, transparency laid on white.

    Greyscale (8 and 16 bit), palette, RGBA and CMYK images are converted. Raises EgoGenError
    naming the file when it is missing, truncated, not an image, or too large to be one
    (decompression bomb).
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return to_rgb(image)
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such image") from None
    except (OSError, ValueError, SyntaxError, EOFError, *BOMBS) as error:
        raise EgoGenError(f"{path}: unreadable image ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB, upright, see `read_rgb`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 or 32 bit grey; Pillow's own conversion clips at 255
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")

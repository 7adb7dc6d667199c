"""Reading photographs and frames of any kind as plain RGB."""

import base64
import io
import os
import struct
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from egogen.errors import EgoGenError

MOST_PIXELS = 2**28  # 16384 x 16384: the largest telephones give 200 million
WHOLE_PIXELS = 2**30 // 12  # a JPEG of more than these is decoded at a fraction of its size
ORIENTATION = 0x0112  # the one EXIF tag that is read
# What sets an image upright, for the tag's values from 2 to 8.
TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
UPRIGHT = dict(enumerate(map(Image.Transpose.__getitem__, TURNS.split()), 2))
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def read_rgb(
    path: str | os.PathLike, opened: BinaryIO | None = None, most: int = MOST_PIXELS
) -> Image.Image:
    """Read an image as 8-bit RGB, upright: EXIF rotation applied, transparency laid on white.

    Greyscale (8 and 16 bit, floats from 0 to 1), palette, RGBA and CMYK images are converted; of
    several pictures in a file the first is read. What a PNG or JPEG holds beside its pixels (texts,
    colour profiles, odd tags) never refuses it. Raises EgoGenError naming the file when it is
    missing, truncated, not an image, or of more than `most` pixels. `opened`: what lies there.
    """
    try:
        with opened or open(path, "rb") as file:
            try:
                return _decoded(file, b"", most)
            except Exception:
                file.seek(0)
                if not file.read(len(PNG)).startswith((PNG, JPEG)):
                    raise
                file.seek(0)
            return _decoded(*_bare(file.read()), most)
    except FileNotFoundError:
        raise EgoGenError(f"{path}: no such image") from None
    except Exception as error:  # Pillow's decoders raise nearly everything on odd bytes
        said = str(error) or type(error).__name__
        raise EgoGenError(f"{path}: unreadable image ({said})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB, upright, see `read_rgb`. ValueError for values out of range."""
    image.load()
    turn = _turn(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def data_uri(image: Image.Image, form: str, **how: Any) -> str:
    """An image, saved in this form with the options `how`, as a URI that holds it."""
    data = io.BytesIO()
    image.save(data, form, **how)
    return f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def is_whole(path: str | os.PathLike) -> bool:
    """Whether an image file is there and complete: by both ends of a JPEG or PNG, else decoded."""
    with suppress(OSError, EgoGenError), open(path, "rb") as file:
        start = file.read(len(PNG))
        file.seek(-12, os.SEEK_END)
        end = file.read()
        jpeg = start.startswith(JPEG) and end.endswith(b"\xff\xd9")
        if not (jpeg or (start == PNG and b"IEND" in end)):
            read_rgb(path)
        return True
    return False


def _decoded(file: Any, exif: bytes, most: int) -> Image.Image:
    """The picture in an open file as RGB; `exif` stands for the file's own block where given."""
    image = _opened(file)
    if image.width * image.height > most:
        raise ValueError(f"{image.width}x{image.height}, expected at most {most} pixels")
    if image.width * image.height > WHOLE_PIXELS:
        image.draft(None, (image.width // 2, image.height // 2))  # JPEG only
    if exif:
        image.info["exif"] = exif
    return to_rgb(image)


def _opened(file: Any) -> Any:
    """`Image.open` without its bound on pixels, which is one for the whole process."""
    start, said = file.read(16), "cannot identify image file"
    Image.preinit()  # the common formats come first
    Image.init()
    for factory, accepts in map(Image.OPEN.__getitem__, Image.ID):
        with suppress(SyntaxError, IndexError, TypeError, struct.error):
            accepted = accepts is None or accepts(start)
            if isinstance(accepted, str):  # of this format, which this Pillow cannot read
                said = accepted
            elif accepted:
                file.seek(0)
                return factory(file, "")
    raise ValueError(said)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets an image upright; None where EXIF says nothing, or something is wrong with it."""
    with suppress(Exception):  # this tag alone: Pillow stops reading at the first that is odd
        block = image.info["exif"].removeprefix(b"Exif\0\0")
        order = "<" if block.startswith(b"II") else ">"
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(f"{order}HHIH", block, at)
            if (tag, kind, number) == (ORIENTATION, 3, 1):
                return UPRIGHT.get(value)
    with suppress(Exception):  # where it stands otherwise: TIFF, XMP
        return UPRIGHT.get(image.getexif()[ORIENTATION])
    return None


def _grey(image: Image.Image) -> Image.Image:
    """Floats from 0 to 1, or whole numbers of 16 bits, as 8-bit grey; others are refused.

    Pillow cuts them off at 255 without scaling: black or white pictures.
    """
    values, floats = np.asarray(image), image.mode == "F"
    low, high, top = values.min(), values.max(), 1 if floats else 0xFFFF
    if not 0 <= low <= high <= top:  # false for NaN too
        raise ValueError(f"grey values from {low} to {high}, expected 0 to {top}")
    if not floats and 0 < high < 256:
        raise ValueError(f"grey values up to {high} of {top} would be black, expected 8 bits")
    scaled = np.rint(values * np.float32(255)) if floats else values // 256
    return Image.fromarray(scaled.astype(np.uint8))


def _bare(data: bytes) -> tuple[io.BytesIO, bytes]:
    """A PNG or JPEG without what stands beside the pixels, and its EXIF block."""
    kept, exif = [], b""
    if data.startswith(PNG):
        at = len(PNG)
        while at < len(data):
            kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4])
            kept += [data[at:end]] if kind in PNG_PIXELS else []
            exif, at = data[at + 8 : end - 4] if kind == b"eXIf" else exif, end
        return io.BytesIO(b"".join([PNG, *kept])), exif
    at = len(JPEG)
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        mark, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        beside, end = 0xE0 <= mark <= 0xEF or mark == 0xFE, at + 1 if mark == 0xFF else end
        # The block of 16 bytes that says how the colours of CMYK and RGB are meant.
        adobe = data[at + 4 : at + 9] == b"Adobe" and end == at + 16
        kept += [data[at:end]] if adobe or not beside else []
        exif, at = data[at + 4 : end] if data[at + 4 : at + 8] == b"Exif" else exif, end
    return io.BytesIO(b"".join([JPEG, *kept, data[at:]])), exif

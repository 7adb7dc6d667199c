"""Pictures as people have them: what stands beside the pixels, large ones, and unusual numbers."""

import io
import struct
import zlib

import numpy as np
import pytest
from bad_input_damage import png_header
from PIL import Image

from egogen.errors import EgoGenError
from egogen.frames import is_whole, read_rgb

PICTURE = np.zeros((64, 96, 3), np.uint8)
PICTURE[:, :48], PICTURE[:, 48:], PICTURE[:16] = (200, 60, 40), (40, 90, 200), (60, 180, 70)
TURNED = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # orientation 6
GREY = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (64, 1))


def encoded(kind: str, **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(PICTURE).save(data, kind, **options)
    return data.getvalue()


JPEG, PNG = encoded("JPEG", quality=95), encoded("PNG")


def exif(*tags: bytes) -> bytes:
    count = struct.pack("<IH", 8, len(tags))
    return b"II*\0" + count + b"".join(tags) + bytes(4) + struct.pack("<ii", -1, 0) * 4


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    parts = [
        bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data for kind, data in segments
    ]
    return JPEG[:2] + b"".join(parts) + JPEG[2:]


def chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(*chunks: bytes, behind: bytes = b"") -> bytes:
    """The chunks before the pixels, `behind` after them."""
    end = PNG.index(b"IEND") - 4
    return PNG[:33] + b"".join(chunks) + PNG[33:end] + behind + PNG[end:]


def read(tmp_path, data: bytes, name: str = "x.jpg") -> Image.Image:
    (tmp_path / name).write_bytes(data)
    return read_rgb(tmp_path / name)


def is_upright(image: Image.Image) -> bool:
    """Whether it is PICTURE after a quarter turn: the green edge on the right."""
    return image.size == (64, 96) and image.getpixel((60, 50))[1] > 150


ODD_TAGS = {
    "resolution of -1/0": struct.pack("<HHII", 0x011A, 10, 1, 38),
    "resolution beyond the block": struct.pack("<HHII", 0x011A, 10, 1, 60_000),
    "resolution without a value": struct.pack("<HHII", 0x011A, 5, 0, 38),
    "resolution as a text": struct.pack("<HHI4s", 0x011A, 2, 4, b"72\0\0"),
    "negative length": struct.pack("<HHIi", 0x0100, 9, 1, -5),
    "four thousand million numbers": struct.pack("<HHII", 0x0100, 12, 0xFFFFFFFF, 38),
    "unknown type": struct.pack("<HHII", 0x011A, 99, 1, 38),
    "block that points at itself": struct.pack("<HHII", 0x8769, 4, 1, 8),
    "place beyond the block": struct.pack("<HHII", 0x8825, 4, 1, 0xFFFFFF),
}


@pytest.mark.parametrize("tag", ODD_TAGS)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_odd_tag_beside_the_orientation_changes_nothing(tmp_path, tag, before):
    tags = [ODD_TAGS[tag], TURNED] if before else [TURNED, ODD_TAGS[tag]]
    block = exif(*tags, struct.pack("<HHIHH", 0x0128, 3, 1, 2, 0))
    assert is_upright(read(tmp_path, jpeg((0xE1, b"Exif\0\0" + block))))
    assert is_upright(read(tmp_path, png(chunk(b"eXIf", block)), "x.png"))


TEXT_BOMB = zlib.compress(bytes(70_000_000))
EXIF = (0xE1, b"Exif\0\0" + exif(TURNED))
EXIF_CHUNK = chunk(b"eXIf", exif(TURNED))
BESIDE = {
    "no profile in the profile": jpeg(EXIF, (0xE2, b"ICC_PROFILE\0")),
    "Photoshop's block cut short": jpeg(EXIF, (0xED, b"Photoshop 3.0\x008BIM\x03\xed\xff")),
    "JFIF cut short": jpeg(EXIF, (0xE0, b"JFIF")),
    "Adobe cut short": jpeg(EXIF, (0xEE, b"Adobe")),
    "list of pictures without a number": jpeg(
        EXIF, (0xE2, b"MPF\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 9, 4, 1, 3) + bytes(4))
    ),
    "long text": png(chunk(b"zTXt", b"a\0\0" + TEXT_BOMB), EXIF_CHUNK),
    "long text behind": png(EXIF_CHUNK, behind=chunk(b"zTXt", b"a\0\0" + TEXT_BOMB)),
    "long international text": png(chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT_BOMB), EXIF_CHUNK),
    "long profile": png(chunk(b"iCCP", b"a\0\0" + TEXT_BOMB), EXIF_CHUNK),
    "profile in another packing": png(chunk(b"iCCP", b"a\0\7x"), EXIF_CHUNK),
    "wrong checksum of a text": png(chunk(b"tEXt", b"a\0b")[:-4] + b"abcd", EXIF_CHUNK),
    "wrong checksum of EXIF": png(EXIF_CHUNK[:-4] + b"abcd"),
    "gamma cut short": png(chunk(b"gAMA", b"a"), chunk(b"pHYs", b"a"), EXIF_CHUNK),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_stands_beside_the_pixels_refuses_nothing(tmp_path, what):
    name = "x.png" if BESIDE[what].startswith(b"\x89PNG") else "x.jpg"
    assert is_upright(read(tmp_path, BESIDE[what], name))


def test_exif_that_is_none_leaves_the_picture_as_it_lies(tmp_path):
    for block in (b"", b"rubbish", b"II*\0", exif(struct.pack("<HHI4s", 0x0112, 2, 2, b"6\0\0\0"))):
        assert read(tmp_path, jpeg((0xE1, b"Exif\0\0" + block))).size == (96, 64)


def test_pillows_bound_on_pixels_is_another_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read(tmp_path, JPEG).size == read(tmp_path, PNG).size == (96, 64)
    assert Image.MAX_IMAGE_PIXELS == 1000
    for claim in (png_header(60_000, 60_000), JPEG.replace(b"\0\x40\0\x60", b"\xea\x60" * 2)):
        with pytest.raises(EgoGenError, match="x.jpg: unreadable image .60000x60000, expected"):
            read(tmp_path, claim)


def test_a_photograph_of_90_megapixels_is_read_at_half_its_size(tmp_path):
    Image.new("L", (10_000, 9_000), 120).save(tmp_path / "x.jpg", quality=50)
    found = read_rgb(tmp_path / "x.jpg")
    assert found.size == (5_000, 4_500) and abs(found.getpixel((7, 7))[0] - 120) < 3


@pytest.mark.parametrize(
    "values",
    [GREY, (GREY * 65_535).astype(np.uint16), (GREY * 65_535).astype(np.int32)],
    ids=["floats", "16 bits", "16 bits in 32"],
)
def test_grey_of_other_numbers_is_scaled(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "x.tif")
    found = np.asarray(read_rgb(tmp_path / "x.tif"), int)[..., 0]
    assert np.abs(found - GREY * 255).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        GREY * 255,
        GREY - 0.5,
        np.where(GREY > 0.5, np.nan, GREY).astype(np.float32),
        np.where(GREY > 0.5, np.inf, GREY).astype(np.float32),
        (GREY * 200).astype(np.int32),
        (GREY * 200).astype(np.uint16),
        (GREY * 2**30).astype(np.int32),
        (GREY * -9).astype(np.int32),
    ],
    ids=["levels", "negative", "nan", "inf", "8 in 32", "8 in 16", "30 bits", "below 0"],
)
def test_grey_that_would_be_black_or_white_is_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(EgoGenError, match="x.tif: unreadable image .grey values .*expected"):
        read_rgb(tmp_path / "x.tif")


def test_of_several_pictures_the_first_is_read(tmp_path):
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue"))
    for name in ("x.gif", "x.png", "x.tif", "x.webp", "x.mpo"):
        first.save(tmp_path / name, save_all=True, append_images=others)
        red, green, _ = read_rgb(tmp_path / name).getpixel((4, 4))
        assert red > 250 and green < 5


def test_a_frame_is_whole_by_its_ends(tmp_path):
    webp = encoded("WEBP")
    for data in (JPEG, PNG, webp, JPEG + b"camera"):
        (tmp_path / "x").write_bytes(data)
        assert is_whole(tmp_path / "x")
    for data in (b"", JPEG[:-300], PNG[:-40], webp[:-40], b"<html>404</html>", JPEG[:2]):
        (tmp_path / "x").write_bytes(data)
        assert not is_whole(tmp_path / "x")
    assert not is_whole(tmp_path / "none") and not is_whole(tmp_path)

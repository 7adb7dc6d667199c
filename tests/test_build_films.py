"""Videos of every kind: the frame on screen at a time, its colours, its shape, what is a video."""

from __future__ import annotations

import random
import struct
from fractions import Fraction
from pathlib import Path

import pytest
from made_films import BLUE, RATE, RED, SIZE, av, from_the_beginning, number_in, picture, write_film

from egogen.build.__main__ import main
from egogen.build.clips import open_clip
from egogen.errors import EgoGenError

OPEN = "log-level=none:pools=1:keyint=20:min-keyint=20:open-gop=1:bframes=4:b-adapt=0"
UNEVEN = [*(k * 1000 // 30 + k * 37 % 23 for k in range(40)), *range(2000, 3000, 50)]
MILLI = Fraction(1, 1000)
KINDS = {
    "closed.mp4": {"options": {"bf": "3"}},
    "open.mp4": {"codec": "libx265", "options": {"x265-params": OPEN}},
    "open.ts": {"options": {"x264-params": "open-gop=1:keyint=15:bframes=3:b-adapt=0"}},
    "refresh.mp4": {"options": {"g": "250", "x264-params": "intra-refresh=1:keyint=20"}},
    "refresh.mkv": {"options": {"g": "250", "x264-params": "intra-refresh=1:keyint=20"}},
    "offset.ts": {"times": range(100_000, 100_060), "options": {"bf": "2"}},
    "uneven.mp4": {"times": UNEVEN, "base": MILLI, "options": {"bf": "2"}},
    "uneven.mkv": {"times": UNEVEN, "base": MILLI},
    "packed.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "guessed.avi": {"options": {"bf": "2"}},
    "nine.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "late.mp4": {"times": range(45, 105), "sound": 3.6},
    "header.flv": {"options": {"bf": "2"}},
    "pack.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "bare.h264": {"options": {"bf": "2"}},
    "still.gif": {"codec": "gif", "pixels": "rgb8", "times": range(0, 180, 3), "base": MILLI * 10},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_that_of_a_decode_from_the_beginning(name, tmp_path):
    path = write_film(tmp_path / name, **{"times": range(60), **KINDS[name]})
    frames = from_the_beginning(path)
    assert len(frames) == 60
    ends = [time for time, _ in frames[1:]] + [frames[-1][0] + 0.5 / RATE]
    order = random.Random(1).sample(range(60), 60) + list(range(20, 40))
    names = {}
    with open_clip(path, None) as clip:
        for k in order:
            time, number = frames[k]
            frame = clip.at(time + (ends[k] - time) / 3)
            assert number_in(frame.image) == number, (k, time)
            names.setdefault(frame.name, set()).add(number)
    assert all(len(numbers) == 1 for numbers in names.values()) and len(names) == 60


def test_names_of_frames_at_a_constant_rate_are_numbers(tmp_path):
    for path in (
        write_film(tmp_path / "a.mp4", times=range(60)),
        write_film(tmp_path / "a.mkv", times=range(45, 105), sound=3.6),  # ms; from its first frame
    ):
        begin = from_the_beginning(path)[0][0]
        with open_clip(path, None) as clip:
            names = [clip.at(begin + (k + 0.4) / RATE).name for k in (0, 7, 59)]
        assert names == ["0000000000", "0000000007", "0000000059"]


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv"])
def test_times_count_from_where_a_player_counts(name, tmp_path):
    """Sound from 0 s, in Matroska from a little before, picture from 1.5 s."""
    path = write_film(tmp_path / name, times=range(45, 105), sound=3.6)
    with open_clip(path, None) as clip:
        assert [number_in(clip.at(time).image) for time in (2.5, 1.4)] == [30, 0]
        with pytest.raises(EgoGenError, match=r"begins at 1\.50 s, not at 0\.50 s"):
            clip.at(0.5)
        with pytest.raises(EgoGenError, match=r"ends before 3\.60 s"):
            clip.at(3.6)


def near(image, x: int, colour: tuple[int, int, int]) -> bool:
    found = image.getpixel((x * image.width // SIZE[0], 60 * image.height // SIZE[1]))
    return all(abs(a - b) <= 6 for a, b in zip(found, colour, strict=True))


COLOURS = {
    "BT.709": ("libx264", "yuv420p", 1, 1),
    "BT.709 full": ("libx264", "yuv420p", 1, 2),
    "BT.601": ("libx264", "yuv420p", 6, 1),
    "BT.2020 of 10 bit": ("libx265", "yuv420p10le", 9, 1),
    "JPEG": ("mjpeg", "yuvj420p", 5, 2),
}


@pytest.mark.parametrize("what", COLOURS)
def test_colours_are_those_of_the_tags(what, tmp_path):
    codec, pixels, matrix, full = COLOURS[what]
    options = {"qp": "1", "qmin": "1", "qmax": "2", "x265-params": "log-level=none:qp=1:pools=1"}
    tags = {"colorspace": matrix, "color_range": full}
    path = write_film(
        tmp_path / "a.mkv", codec, range(8), pixels=pixels, tags=tags, options=options
    )
    with open_clip(path, None) as clip:
        image = clip.at(0.1).image
    assert near(image, 40, RED) and near(image, 110, BLUE)


def test_colours_without_tags_or_of_rgb_are_as_before(tmp_path):
    path = write_film(tmp_path / "a.mkv", "libx264", range(8), options={"qp": "1"})
    same = write_film(tmp_path / "b.mkv", "libx264rgb", range(8), pixels="rgb24")
    for one in (path, same):
        with open_clip(one, None) as clip:
            image = clip.at(0.1).image
        assert near(image, 40, RED) and near(image, 110, BLUE)


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(4, 3), (213, 96)), (Fraction(1, 2), (160, 192))]
)
def test_pixels_are_square(aspect, size, tmp_path):
    path = write_film(tmp_path / "a.mp4", times=range(8), aspect=aspect)
    with open_clip(path, None) as clip:
        image = clip.at(0.1).image
    assert image.size == size and number_in(image) == 3


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix [[a, b], [c, d]] into an MP4 file's track header."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"tkhd") + 44  # of a header of version 0
    a, b, c, d = (value << 16 for value in matrix)
    data[begin : begin + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "corner"),  # where the white mark of the lower left is then seen
    [
        ((1, 0, 0, 1), "lower left"),
        ((0, 1, -1, 0), "upper left"),
        ((-1, 0, 0, -1), "upper right"),
        ((0, -1, 1, 0), "lower right"),
        ((-1, 0, 0, 1), "lower right"),
        ((1, 0, 0, -1), "upper left"),
        ((0, 1, 1, 0), "upper right"),
        ((0, -1, -1, 0), "lower left"),
    ],
)
def test_turned_and_mirrored(matrix, corner, tmp_path):
    path = write_film(tmp_path / "a.mp4", times=range(8))
    turn(path, matrix)
    with open_clip(path, None) as clip:
        image = clip.at(0.1).image
    assert image.size == (SIZE if matrix[0] else SIZE[::-1])
    x, y = image.width - 5, image.height - 5
    places = {
        "upper left": (4, 4),
        "upper right": (x, 4),
        "lower left": (4, y),
        "lower right": (x, y),
    }
    assert [name for name, at in places.items() if min(image.getpixel(at)) > 220] == [corner]


def test_what_is_a_video_is_said_by_ffmpeg(tmp_path):
    (tmp_path / "a.txt").write_text("1:00 pick up the mug\n" * 50)
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXTINF:3,\nhttp://127.0.0.1:9/x.ts\n")
    picture(3).save(tmp_path / "a.png")
    for name in ("a.txt", "a.m3u8", "a.png"):
        refused = pytest.raises(EgoGenError, match=f"{name}: (not a|holds no) video")
        with refused, open_clip(tmp_path / name, None):
            pass
    for name, kind in (("GL01.LRV", "mp4"), ("VID.insv", "mov"), ("00001.MTS", "mpegts")):
        path = write_film(tmp_path / name, times=range(8), kind=kind)
        with open_clip(path, None) as clip:
            assert number_in(clip.at(0.1).image) == 3


def test_the_best_of_several_streams(tmp_path):
    """The first is a preview, the second the default."""
    kinds = av.stream.Disposition
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=RATE) for _ in range(2)]
        for stream, flags in zip(streams, (kinds.comment, kinds.default), strict=True):
            stream.width, stream.height = SIZE
            stream.disposition = flags.value
        for number in range(20):
            for stream, shown in zip(streams, (99, number), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_image(picture(shown))))
        for stream in streams:
            container.mux(stream.encode())
    with open_clip(tmp_path / "a.mkv", None) as clip:
        assert number_in(clip.at(0.35).image) == 10


def test_frames_close_together_are_two(tmp_path, capsys):
    """20 frames within 0.2 s of a film of 10 a second on average."""
    times = [*range(0, 1000, 100), *range(1000, 1200, 10), *range(1200, 5000, 200)]
    write_film(tmp_path / "a.mp4", times=times, base=MILLI)
    (tmp_path / "a.csv").write_text("clip,start,action,contact\na,1.005,act,1.015\n")
    words = [str(tmp_path / "out"), "--table", str(tmp_path / "a.csv"), "--before", "0"]
    assert main([*words, "--videos", str(tmp_path)]) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "out" / "EgoGen").rglob("*.jpg"))) == 2


def test_a_damaged_stretch_is_refused_and_the_rest_read(tmp_path):
    path = write_film(tmp_path / "a.avi", "mpeg4", range(60))  # key frames 0, 15, 30 and 45
    data = bytearray(path.read_bytes())
    begin = -1
    for _ in range(21):
        begin = data.index(b"00dc", begin + 1)
    size = struct.unpack("<I", data[begin + 4 : begin + 8])[0]
    data[begin + 8 : begin + 8 + size] = b"\xff" * size
    path.write_bytes(data)
    with open_clip(path, None) as clip:
        for time, number in ((0.55, 16), (1.05, 31), (1.95, 58)):
            assert number_in(clip.at(time).image) == number
            with pytest.raises(EgoGenError, match=r"damaged at 0\.85 s"):
                clip.at(0.85)
    path = write_film(tmp_path / "b.ts", times=range(60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_clip(path, None) as clip, pytest.raises(EgoGenError, match="ends"):
        clip.at(1.9)

"""Films of many kinds for tests; every picture says its number in black and white blocks."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")
SIZE, BLOCK, BITS = (160, 96), 16, 8
RATE = 30
RED, BLUE = (200, 30, 30), (40, 60, 200)


def picture(number: int) -> Image.Image:
    """Blocks on top; below red at the left and blue at the right, white at the lower left."""
    image = Image.new("RGB", SIZE, (90, 90, 90))
    for bit in range(BITS):
        shade = (235, 235, 235) if number >> bit & 1 else (20, 20, 20)
        image.paste(shade, (16 + bit * BLOCK, 8, 16 + (bit + 1) * BLOCK, 32))
    image.paste(RED, (16, 40, 72, 80))
    image.paste(BLUE, (88, 40, 144, 80))
    image.paste((255, 255, 255), (0, 80, 16, 96))
    return image


def number_in(image: Image.Image) -> int:
    """The number in an upright picture of any size."""
    grey = np.asarray(image.convert("L").resize(SIZE), int)
    return sum(
        (grey[16:24, 20 + bit * BLOCK : 28 + bit * BLOCK].mean() > 128) << bit
        for bit in range(BITS)
    )


def write_film(
    path: Path,
    codec: str = "libx264",
    times: Iterable[int] = range(90),
    *,
    base: Fraction = Fraction(1, RATE),
    pixels: str = "yuv420p",
    sound: float | None = None,
    kind: str | None = None,
    tags: dict[str, int] | None = None,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Pictures 0, 1, ... shown at `times` of `base`; `sound`: silence from 0 s to then.

    `tags`: colorspace, color_range ... of the frames and the stream, as FFmpeg numbers them.
    """
    with av.open(str(path), "w", format=kind, options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options={"g": "15", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = *SIZE, pixels
        stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        packets = []
        silence = container.add_stream("aac", rate=48_000, layout="mono") if sound else None
        matrix = (tags or {}).get("colorspace", 5)
        full = (tags or {}).get("color_range", 1)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_image(picture(number))
            frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=full)
            frame.pts, frame.time_base = time, base
            packets += stream.encode(frame)
        packets += stream.encode()
        for start in range(0, round(48_000 * (sound or 0)), 1024):
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            quiet.sample_rate, quiet.pts, quiet.time_base = 48_000, start, Fraction(1, 48_000)
            packets += silence.encode(quiet)
        if silence:
            packets += silence.encode()
            packets.sort(key=lambda packet: float(packet.dts * packet.time_base))
        for packet in packets:
            container.mux(packet)
    return path


def from_the_beginning(path: Path) -> list[tuple[float, int]]:
    """(time in seconds from the container's start, number in the picture) of every frame."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        start = max((container.start_time or 0) / 1e6, 0.0)
        for count, frame in enumerate(container.decode(stream)):
            ticks = frame.pts if frame.pts is not None else frame.dts
            time = (
                count / float(stream.guessed_rate)
                if ticks is None
                else float(ticks * stream.time_base) - start
            )
            frames.append((time, number_in(frame.to_image())))
    times, numbers = zip(*frames, strict=True)
    return list(zip(sorted(times), numbers, strict=True))  # AVI's are guessed, out of order

"""Frames of a video by time, as a player shows them; FFmpeg's libraries decide what a video is."""

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition
from PIL import Image

from egogen.build.clips import EPSILON, Frame
from egogen.build.rows import usual_rate
from egogen.errors import EgoGenError

TEXT_ART = ("ansi", "bintext", "xbin", "idf")  # FFmpeg draws text files
BACK = (0, 1, 4, 16)  # seconds before the asked time at which a seek is tried, then the beginning
NEAR = 0.5  # seconds that are decoded on rather than sought
AHEAD = 4  # frames that are decoded to put the times of AVI in order
LEAD = 0.25  # the sound may begin this much earlier: a player shows the first frame meanwhile


def open_film(path: Path):
    """-> (container, its best video stream). Raises EgoGenError: not a video."""
    try:  # a playlist must not reach beyond files; tags may be in any encoding
        only = {"protocol_whitelist": "file"}  # PyAV's `options` end the process for FLV
        container = av.open(str(path.absolute()), container_options=only, metadata_errors="replace")
    except (FFmpegError, OSError) as error:
        raise EgoGenError(f"{path}: not a video ({error})") from None
    kind, best = container.format.name, container.streams.best("video")
    picture = kind in ("image2", "ico") or kind.endswith("_pipe")
    for stream in () if picture or not best else (best, *container.streams.video):
        cover = stream.disposition & Disposition.attached_pic
        if not cover and stream.codec_context and stream.codec_context.name not in TEXT_ART:
            return container, stream
    container.close()
    raise EgoGenError(f"{path}: holds no video that FFmpeg's libraries can decode")


def is_film(path: Path) -> bool:
    with suppress(EgoGenError):
        open_film(path)[0].close()
        return True
    return False


class Video:
    """A video file. Times count from the container's beginning, as a player counts them."""

    def __init__(self, path: Path):
        self.path = path
        self._open()
        zero = self.container.start_time  # in microseconds; none: a bare stream without times
        self.rate = _rate(self.stream, zero is not None) or Fraction(0)
        if not self.rate:
            self.close()
            raise EgoGenError(f"{path}: has no frame rate")
        self.fps, self.tick = float(self.rate), self.stream.time_base
        self.first = self.stream.start_time or 0
        begin = float(self.first * self.tick)
        self.zero = begin if zero is None else zero / 1e6
        if self.zero < 0:  # of the sound what lies before 0 is not heard (priming)
            self.zero = min(begin, 0.0)
        late = begin - self.zero
        self.late = late if abs(late) > 2e-6 else 0.0  # `zero` has microseconds
        lengths = (self.stream.duration or 0) * self.tick, (self.container.duration or 0) / 1e6
        self.length = float(lengths[0] or lengths[1])  # in seconds, 0: not known
        self.shown: Any = None  # the frame decoded last, and the one behind it
        self.coming: Any = None
        self.damaged: set[int] = set()  # times of frames that refer to what could not be decoded

    def _open(self) -> None:
        self.container, self.stream = open_film(self.path)
        self.stream.thread_type = "AUTO"

    def close(self) -> None:
        self.container.close()

    def last(self) -> float:
        """The time of the last frame, in seconds."""
        self.at(math.inf)
        return self._time(self.shown)

    def at(self, seconds: float) -> Frame:
        """The frame on screen at that time; of a film of a constant rate it is floor(time x rate).

        Raises EgoGenError beyond the beginning and end.
        """
        try:
            self._go_to(seconds)
            return Frame(self._image(), self._name())
        except (FFmpegError, ValueError, MemoryError) as error:
            self.shown = None
            raise EgoGenError(f"{self.path}: unreadable at {seconds:.2f} s ({error})") from None

    def _go_to(self, seconds: float) -> None:
        """`shown` is then the last frame that begins up to then, whatever a seek gives."""
        due = seconds + EPSILON / self.fps
        if self.shown is None or not 0 <= due - self._time(self.shown) <= NEAR:
            near = min(seconds, self.length)
            befores = [near - back for back in BACK if near > back]
            found = (self._begin(time) and self._time(self.coming) <= due for time in befores)
            if not any(found) and not self._begin(None):
                raise EgoGenError(f"{self.path}: no frame can be decoded")
        begin = self._time(self.shown or self.coming)
        if begin > due + LEAD:
            raise EgoGenError(f"{self.path}: begins at {begin:.2f} s, not at {seconds:.2f} s")
        while self.coming and (self.shown is None or self._time(self.coming) <= due):
            self.shown, self.coming = self.coming, next(self.frames, None)
        lasts = max(self.shown.duration, 1 / self.rate / self.tick)
        if self.coming is None and self._time(self.shown, lasts) <= due < math.inf:
            raise EgoGenError(f"{self.path}: ends before {seconds:.2f} s")
        if self.shown.pts in self.damaged:
            raise EgoGenError(f"{self.path}: damaged at {seconds:.2f} s")

    def _time(self, frame, lasts: int | Fraction = 0) -> float:
        return self.late + float(self._exact(frame.pts - self.first + lasts))

    def _exact(self, ticks: int | Fraction) -> Fraction:
        """Ticks from the first frame on in seconds: a multiple of 1 / rate up to their rounding."""
        seconds = ticks * self.tick
        even = round(seconds * self.rate) / self.rate
        return even if abs(even - seconds) < self.tick else seconds

    def _begin(self, seconds: float | None) -> bool:
        """Decode from a key frame before that time, or from the first -> whether a frame came."""
        if seconds is None:  # opened again, as a seek to the first frame may leave others out
            self.container.close()
            self._open()
        else:
            offset = min(int((seconds + self.zero) / self.tick), 2**62)
            try:
                self.container.seek(offset, stream=self.stream)
            except FFmpegError:
                return False
        frames = self._decode(seconds is not None)
        self.frames = _in_order(frames) if self.container.format.name == "avi" else frames
        self.shown, self.coming = None, next(self.frames, None)
        return self.coming is not None

    def _decode(self, sought: bool) -> Iterator[av.VideoFrame]:
        """Frames with their times; after a seek from a key frame with a time of its own."""
        expected = None if sought else self.first
        damaged = False
        for packet in self.container.demux(self.stream):
            if sought and not (packet.is_keyframe and packet.pos is not None):
                continue  # what precedes has no base, or a time reckoned from nothing (MPEG)
            sought = False
            try:
                frames = packet.decode()
            except InvalidDataError:  # what refers to it is damaged too
                damaged = True
                continue
            for frame in frames:
                damaged = damaged and not frame.key_frame
                if frame.pts is None:  # AVI has times of decoding, a bare stream none
                    frame.pts = frame.dts if frame.dts is not None else expected
                if frame.pts is None:
                    return
                frame.time_base = self.tick  # a flushed frame has none
                if damaged:
                    self.damaged.add(frame.pts)
                expected = frame.pts + (frame.duration or round(1 / self.rate / self.tick))
                yield frame

    def _name(self) -> str:
        """The frame's number; with its time where frames do not follow at a constant rate."""
        ticks = self.shown.pts - self.first
        position = self._exact(ticks) * self.rate
        number = f"{int(position):010d}"
        return number if position.denominator == 1 else f"{number}_{ticks}"

    def _image(self) -> Image.Image:
        """RGB by the colours' tags, in square pixels, turned and mirrored, as FFmpeg's command."""
        frame = self.shown
        aspect = self.stream.sample_aspect_ratio or Fraction(1)
        # as in players neither side becomes less
        size = f"{round(frame.width * max(aspect, 1))}:{round(frame.height / min(aspect, 1))}"
        kind = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
        kind += f":time_base={self.tick}:colorspace={int(frame.colorspace)}"
        kind += f":range={int(frame.color_range)}"
        graph = av.filter.Graph()
        steps = [("buffer", kind), ("scale", size), ("format", "rgb24"), *_turns(frame)]
        nodes = [graph.add(*step) for step in (*steps, ("buffersink", None))]
        graph.link_nodes(*nodes).configure()
        graph.vpush(frame)
        return Image.fromarray(graph.vpull().to_ndarray())


def _rate(stream, timed: bool) -> Fraction | None:
    """Frames a second: the average; where the last one's duration makes it uneven, by the steps."""
    average, guessed = (r and usual_rate(r) for r in (stream.average_rate, stream.guessed_rate))
    if not (timed and average and guessed):
        return timed and average or guessed
    apart = abs((stream.duration or 0) * stream.time_base * guessed - stream.frames)
    return guessed if average.denominator not in (1, 1001) and apart <= 1 else average


def _in_order(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Frames come as they are shown; AVI's guessed times may be exchanged among a few of them."""
    held: list[av.VideoFrame] = []
    for frame in itertools.chain(frames, [None] * AHEAD):
        if len(held) >= AHEAD or frame is None and held:
            first = min(range(len(held)), key=lambda k: held[k].pts)
            held[0].pts, held[first].pts = held[first].pts, held[0].pts
            yield held.pop(0)
        if frame is not None:
            held.append(frame)


def _turns(frame) -> list[tuple[str, str | None]]:
    """The quarter turns and mirrors of the display matrix, as filters of FFmpeg."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return []
    a, b, _, c, d = (int(value) for value in np.frombuffer(data, np.int32)[:5])
    across = abs(b) > abs(a)  # rows become columns
    x, y = (c, b) if across else (a, d)
    turns: list[tuple[str, str | None]] = [("transpose", "0")] if across else []
    return turns + [("hflip", None)] * (x < 0) + [("vflip", None)] * (y < 0)

"""Frames of a clip by time, from a video file or from a folder of frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from egogen.errors import EgoGenError
from egogen.frames import read_rgb

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
EPSILON = 1e-3  # seconds: times in tables are rounded


@dataclass(frozen=True)
class Frame:
    """The image that is seen at a time, and its number in the clip (from 0)."""

    image: Image.Image
    number: int


class Clip(Protocol):
    fps: float

    def at(self, seconds: float) -> Frame:
        """The frame on screen at that time. Raises EgoGenError beyond the end."""


def _find_clip(videos: Path, name: str) -> Path:
    place = videos / name
    if place.is_dir() or (place.is_file() and place.suffix.lower() in VIDEO_SUFFIXES):
        return place
    found = [path for suffix in VIDEO_SUFFIXES if (path := videos / f"{name}{suffix}").is_file()]
    if len(found) != 1:
        several = f"several videos ({', '.join(p.name for p in found)})"
        what = several if found else "no video or folder"
        raise EgoGenError(f"{place}: {what} of that name, expected one")
    return found[0]


def find_clips(videos: Path, names: Iterable[str]) -> dict[str, Path]:
    """Clip -> its video or folder of frames. Raises EgoGenError that names all that are missing."""
    places, missing = {}, []
    for name in dict.fromkeys(names):
        try:
            places[name] = _find_clip(videos, name)
        except EgoGenError as error:
            missing.append(str(error))
    if missing:
        raise EgoGenError("; ".join(missing))
    return places


@contextmanager
def open_clip(path: Path, fps: float | None) -> Iterator[Clip]:
    if path.is_dir():
        yield FrameFolder(path, fps)
        return
    import av  # its libraries take a second: only where there are videos

    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise EgoGenError(f"{path}: not a video ({error})") from None
    with container:
        yield Video(path, container)


class FrameFolder:
    """Images in the order of their names, `fps` of them a second."""

    def __init__(self, path: Path, fps: float | None):
        if fps is None:
            raise EgoGenError(f"{path}: a folder of frames needs --fps, their number a second")
        self.path, self.fps = path, fps
        found = (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        self.frames = sorted(found, key=lambda p: (len(p.stem), p.stem))
        if not self.frames:
            raise EgoGenError(f"{path}: no images in this folder")

    def at(self, seconds: float) -> Frame:
        number = int((seconds + EPSILON) * self.fps)
        if number >= len(self.frames):
            end = len(self.frames) / self.fps
            raise EgoGenError(f"{self.path}: ends at {end:.2f} s, {seconds:.2f} s was asked for")
        return Frame(read_rgb(self.frames[number]), number)


class Video:
    """A video file, read with FFmpeg's libraries through PyAV."""

    def __init__(self, path: Path, container):
        self.path, self.container = path, container
        if not container.streams.video:
            raise EgoGenError(f"{path}: holds no video")
        self.stream = container.streams.video[0]
        self.stream.thread_type = "AUTO"
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            raise EgoGenError(f"{path}: has no frame rate")
        self.fps = float(rate)
        self.start = float((self.stream.start_time or 0) * self.stream.time_base)

    def at(self, seconds: float) -> Frame:
        import av

        shown = None
        try:
            offset = int((seconds + self.start) / self.stream.time_base)
            self.container.seek(max(offset, 0), stream=self.stream, backward=True)
            for frame in self.container.decode(self.stream):
                if frame.time is None:
                    continue
                if shown is not None and frame.time - self.start > seconds + EPSILON:
                    return self._frame(shown)
                shown = frame
        except av.error.FFmpegError as error:
            raise EgoGenError(f"{self.path}: unreadable at {seconds:.2f} s ({error})") from None
        last = shown.time - self.start if shown is not None else 0.0
        if shown is None or seconds > last + 1 / self.fps + EPSILON:
            raise EgoGenError(f"{self.path}: ends before {seconds:.2f} s")
        return self._frame(shown)

    def _frame(self, frame) -> Frame:
        image = frame.to_image()
        if frame.rotation:  # how the player would turn it, counter-clockwise
            image = image.rotate(frame.rotation, expand=True)
        return Frame(image, round((frame.time - self.start) * self.fps))

"""Clips by name, and frames of one by time: of a video file or of a folder of frames."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from egogen.errors import EgoGenError
from egogen.frames import read_rgb

EPSILON = 1e-3  # seconds: times in tables are rounded
Forms = tuple[Callable[[str], str], ...]


@dataclass(frozen=True)
class Frame:
    """The image that is seen at a time, and its number in the clip (from 0) for its file's name."""

    image: Image.Image
    name: str


@functools.cache
def _folded(name: str) -> str:
    """Equal for names that differ in case or in the form of accents, as systems write them."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@functools.cache
def _stem(name: str) -> str:
    """Without an ending; "2024.06.01_kitchen" has none."""
    return re.sub(r"\.[a-zA-Z0-9]{1,5}$", "", name)


def _named(folder: Path, wanted: str, names: Iterable[str], cuts: Forms = (str,)) -> Path:
    """What is called so in a folder: exactly, else as `cuts` make it, else without case."""
    forms: Forms = (str, _folded)
    for same, cut in itertools.product(forms, cuts):
        found = [folder / name for name in names if same(cut(name)) == same(wanted)]
        found = [path for path in found if cut is str or path.is_file()]
        if len(found) > 1:  # texts and sounds lie beside videos
            from egogen.build.films import is_film

            found = [path for path in found if path.is_dir() or is_film(path)] or found
        if len(found) > 1:
            several = ", ".join(path.name for path in found)
            raise EgoGenError(f"{folder / wanted}: several of that name ({several}), expected one")
        if found:
            return found[0]
    raise EgoGenError(f"{folder / wanted}: no video or folder of that name, expected one")


def find_clips(videos: Path, names: Iterable[str]) -> dict[str, Path]:
    """Clip -> its video or folder of frames. Raises EgoGenError that names all that are missing."""
    places, missing = {}, []

    @functools.cache
    def names_in(folder: Path) -> list[str]:
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    for name in dict.fromkeys(names):
        *parents, last = PurePosixPath(name).parts
        folder = videos
        try:
            for part in parents:
                folder = _named(folder, part, names_in(folder))
            places[name] = _named(folder, last, names_in(folder), (str, _stem))
        except EgoGenError as error:
            missing.append(str(error))
    if missing:
        raise EgoGenError("; ".join(missing))
    return places


def clip_id(place: Path) -> str:
    """What a clip is called in the dataset: as it was found, a video without its ending."""
    return place.name if place.is_dir() else _stem(place.name)


@contextmanager
def open_clip(path: Path, fps: float | None) -> Iterator[Any]:
    """What gives the frame `at(seconds)`, and its `fps`."""
    if path.is_dir():
        yield FrameFolder(path, fps)
        return
    from egogen.build.films import Video  # its libraries take a second: only where there are videos

    with closing(Video(path)) as video:
        yield video


class FrameFolder:
    """Images by the last number in their names, from 0 or 1 on; `fps` of them a second."""

    def __init__(self, path: Path, fps: float | None):
        if fps is None:
            raise EgoGenError(f"{path}: a folder of frames needs --fps, their number a second")
        self.path, self.fps = path, fps
        kinds = Image.registered_extensions()
        try:
            found = [p for p in sorted(path.iterdir()) if p.suffix.lower() in kinds]
            found = [p for p in found if p.name[0] != "."]  # what macOS puts beside files
        except OSError as error:
            raise EgoGenError(f"{path}: unreadable ({error.strerror})") from None
        if not found:
            raise EgoGenError(f"{path}: no images in this folder")
        self.frames: dict[int, Path] = {}
        for image in found:
            digits = re.findall(r"\d+", image.stem)
            if not digits:
                raise EgoGenError(f"{image}: no number in its name, expected the frame's")
            other = self.frames.setdefault(int(digits[-1]), image)
            if other != image:
                raise EgoGenError(f"{image}: has the number of {other.name}")
        self.first, self.last = min(self.frames), max(self.frames)
        step = math.gcd(*(number - self.first for number in self.frames))
        if self.first > 1:
            raise EgoGenError(f"{path}: frames are numbered from {self.first}, expected 0 or 1")
        if step > 1:
            raise EgoGenError(f"{path}: only every frame number {step} is there, expected all")

    def at(self, seconds: float) -> Frame:
        place = int((seconds + EPSILON) * self.fps)
        number = place + self.first
        if number > self.last:
            end = (self.last + 1 - self.first) / self.fps
            raise EgoGenError(f"{self.path}: ends at {end:.2f} s, {seconds:.2f} s was asked for")
        if number not in self.frames:
            raise EgoGenError(f"{self.path}: frame {number}, of {seconds:.2f} s, is missing")
        return Frame(read_rgb(self.frames[number]), f"{place:010d}")

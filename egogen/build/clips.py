"""Clips by name, and frames of one by time: of a video file or of a folder of frames."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image

from egogen.errors import EgoGenError
from egogen.frames import read_rgb

EPSILON = 1e-3  # seconds: times in tables are rounded


@dataclass(frozen=True)
class Frame:
    """The image that is seen at a time, and its number in the clip (from 0) for its file's name."""

    image: Image.Image
    name: str


class Clip(Protocol):
    @property
    def fps(self) -> float: ...

    def at(self, seconds: float) -> Frame:
        """The frame on screen at that time. Raises EgoGenError beyond the end."""


def folded(name: str) -> str:
    """Equal for names that differ in case or in the form of accents, as systems write them."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _index(folder: Path) -> list[dict[str, list[str]]]:
    """Names in a folder by: themselves, without ending, folded, folded without ending."""
    index: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(4)]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        index[0][path.name].append(path.name)
        index[2][folded(path.name)].append(path.name)
        if path.suffix and not path.is_dir():
            index[1][path.stem].append(path.name)
            index[3][folded(path.stem)].append(path.name)
    return index


def _find(index: Callable[[Path], list[dict[str, list[str]]]], videos: Path, name: str) -> Path:
    """The video or folder of that name: exact before without ending before without case."""
    *parents, last = PurePosixPath(name).parts
    folder = videos
    for part in parents:
        found = index(folder)[0].get(part) or index(folder)[2].get(folded(part), [part])
        folder = folder / _only(folder / part, [n for n in found if (folder / n).is_dir()])
    levels = [index(folder)[level].get(key, []) for level, key in enumerate([last] * 2)]
    levels += [index(folder)[level].get(folded(last), []) for level in (2, 3)]
    if not levels[0] and len(set().union(*levels)) > 1:  # texts and sounds lie beside videos
        levels = [[n for n in level if _is_clip(folder / n)] for level in levels]
    return folder / _only(folder / last, next(filter(None, levels), []))


def _only(place: Path, found: list[str]) -> str:
    if len(found) != 1:
        what = f"several of that name ({', '.join(found)})" if found else "no video or folder"
        raise EgoGenError(f"{place}: {what}{'' if found else ' of that name'}, expected one")
    return found[0]


def _is_clip(path: Path) -> bool:
    from egogen.build.films import is_film

    return path.is_dir() or is_film(path)


def find_clips(videos: Path, names: Iterable[str]) -> dict[str, Path]:
    """Clip -> its video or folder of frames. Raises EgoGenError that names all that are missing."""
    places, missing = {}, []
    index = functools.cache(_index)
    for name in dict.fromkeys(names):
        try:
            places[name] = _find(index, videos, name)
        except EgoGenError as error:
            missing.append(str(error))
    if missing:
        raise EgoGenError("; ".join(missing))
    return places


def clip_id(name: str, place: Path) -> str:
    """What a clip is called in the dataset: the name found, of a video without its ending.

    An ending is what the table leaves out, or what FFmpeg knows as one; "2024.06.01" has none.
    """
    if place.is_dir() or not place.suffix:
        return place.name
    if folded(PurePosixPath(name).name) == folded(place.stem):
        return place.stem
    from egogen.build.films import endings

    return place.stem if place.suffix.lower() in endings() else place.name


@contextmanager
def open_clip(path: Path, fps: float | None) -> Iterator[Clip]:
    if path.is_dir():
        yield FrameFolder(path, fps)
        return
    from egogen.build.films import Video  # its libraries take a second: only where there are videos

    with closing(Video(path)) as video:
        yield video


class FrameFolder:
    """Images by the numbers in their names, which begin with 0 or 1; `fps` of them a second."""

    def __init__(self, path: Path, fps: float | None):
        if fps is None:
            raise EgoGenError(f"{path}: a folder of frames needs --fps, their number a second")
        self.path, self.fps = path, fps
        kinds = Image.registered_extensions()
        try:
            found = [p for p in path.iterdir() if p.suffix.lower() in kinds and p.name[0] != "."]
        except OSError as error:
            raise EgoGenError(f"{path}: unreadable ({error.strerror})") from None
        if not found:
            raise EgoGenError(f"{path}: no images in this folder")
        self.frames = _numbered(path, found)
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
            raise EgoGenError(
                f"{self.path}: frame {number}, on screen at {seconds:.2f} s, is missing"
            )
        return Frame(read_rgb(self.frames[number]), f"{place:010d}")


def _numbered(folder: Path, paths: list[Path]) -> dict[int, Path]:
    """Images by number: of several numbers in each name the one that is not the same in all."""
    names = {path: [int(digits) for digits in re.findall(r"\d+", path.stem)] for path in paths}
    amount = len(names[paths[0]])
    for path, numbers in names.items():
        if not numbers or len(numbers) != amount:
            raise EgoGenError(
                f"{path}: expected names that differ in one number, as {paths[0].name}"
            )
    columns = list(zip(*names.values(), strict=True))
    changing = [k for k, column in enumerate(columns) if len(set(column)) > 1] or [amount - 1]
    if len(changing) > 1:
        raise EgoGenError(
            f"{folder}: several numbers in the names change ({paths[0].name}), expected one"
        )
    frames: dict[int, Path] = {}
    for path, numbers in names.items():
        other = frames.setdefault(numbers[changing[0]], path)
        if other != path:
            raise EgoGenError(f"{path}: has the number of {other.name}")
    return frames

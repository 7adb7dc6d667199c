"""Clips by name, and frames of one by time: of a video, a tar archive or a folder of frames.

Images of ready pairs are found by their names instead.
"""

import functools
import io
import math
import os
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from egogen.errors import EgoGenError, listed
from egogen.frames import JPEG, read_rgb

EPSILON = 1e-6  # of a frame: a time that was written of frame n is n / rate, rounded
TAR = re.compile(r"\.(tar|tar\.gz|tar\.bz2|tar\.xz|tgz)$", re.IGNORECASE)
FLOW = "flow_frames"  # EPIC's optical flow has the names of the videos


@dataclass(frozen=True)
class Frame:
    """The image that is seen at a time, and its number in the clip (from 0) for its file's name."""

    image: Image.Image
    name: str
    jpeg: bytes | Path | None = None  # of a ready image: its file, which is kept as it is


def is_archive(path: Path) -> bool:
    return TAR.search(path.name) is not None and path.is_file()


class Archive:
    """Regular files of a tar archive: an index, and reading by seeking; nothing is unpacked.

    Links and devices are not looked at, nor hidden files.
    """

    def __init__(self, path: Path):
        self.path = path
        self.places: dict[str, tuple[int, int]] = {}  # name -> (begin, size) in bytes
        end = -1
        try:
            self.tar = tarfile.open(path)  # noqa: SIM115
            for member in self.tar:
                if member.offset_data <= end:  # sizes below 0 lead round in a circle
                    raise tarfile.ReadError("members lie in one another")
                end, self.tar.members = member.offset_data, []  # type: ignore[attr-defined]
                name = PurePosixPath(member.name)
                if member.isreg() and not member.issparse() and name.name[:1] != ".":
                    self.places[str(name)] = (member.offset_data, member.size)
        except Exception as error:  # of any of the packers
            raise EgoGenError(f"{path}: damaged, or no tar archive ({error})") from None

    def read(self, name: str) -> io.BytesIO:
        begin, size = self.places[name]
        try:
            self.tar.fileobj.seek(begin)  # type: ignore[union-attr]
            return io.BytesIO(self.tar.fileobj.read(size))  # type: ignore[union-attr]
        except Exception as error:
            raise EgoGenError(f"{self.path}: {name}: damaged ({error})") from None


@functools.cache
def _folded(name: str) -> str:
    """Equal for names that differ in case or in the form of accents, as systems write them."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@functools.cache
def _stem(name: str) -> str:
    """Without an ending; "2024.06.01_kitchen" has none."""
    return re.sub(r"(\.tar)?\.[a-zA-Z0-9]{1,5}$", "", name)


def find_clips(videos: Path, names: Iterable[str], needed: bool = True) -> dict[str, Path]:
    """Clip -> its video, archive or folder: below `videos` as it is written, else however deep.

    Raises EgoGenError for all that several could be, and, where all are `needed`, are nowhere.
    """
    places, problems = {}, []
    parts = {name: PurePosixPath(name).parts for name in dict.fromkeys(names)}
    below = _walk(videos, parts.values())
    for name, clip in parts.items():
        folders = [_folded(part) for part in clip[:-1]]
        paths = below.get(_folded(clip[-1]), ())
        ends = [p for p in paths if [_folded(q) for q in p.parts[-len(clip) : -1]] == folders]
        exact = [path for path in ends if path.parent == (videos / name).parent]
        near = [path for path in ends if len(path.parts) == len(videos.parts) + len(clip)]
        found = next(filter(None, (_fitting(group, clip[-1]) for group in (exact, near, ends))), [])
        if len(found) == 1:
            places[name] = found[0]
        elif found:
            several = ", ".join(str(path.relative_to(videos)) for path in found)
            problems.append(f"{videos / name}: several of that name ({several}), expected one")
        elif needed:
            problems.append(f"{videos / name}: no video or folder of that name, expected one")
    if problems:
        raise EgoGenError(listed(problems, "; "))
    return places


def _walk(videos: Path, clips: Iterable[Sequence[str]]) -> dict[str, list[Path]]:
    """What a clip may be called after, by that name: all below but hidden files and folders.

    Clips' own folders are not entered, as there are many frames, nor circles of links.
    """
    wanted = {_folded(clip[-1]) for clip in clips}
    own = wanted - {_folded(part) for clip in clips for part in clip[:-1]}
    index: dict[str, list[Path]] = {}
    for folder, folders, files in os.walk(videos, followlinks=True):
        new = os.path.realpath(folder) not in map(os.path.realpath, Path(folder).parents)
        folders[:] = sorted(name for name in folders if new and name[0] != "." and name != FLOW)
        for name in [*folders, *sorted(files)] if new else ():
            for key in {_folded(name), _folded(_stem(name))} & wanted:
                index.setdefault(key, []).append(Path(folder, name))
        folders[:] = [name for name in folders if _folded(name) not in own]
    return index


def _fitting(paths: Sequence[Path], wanted: str) -> Sequence[Path]:
    """Those called so: a file exactly, else what is but for its ending; else without case.

    Of several films stand before archives, and these before folders of frames.
    """
    forms: tuple[Callable[[str], str], ...] = (str, _folded)
    for same in forms:
        found = [path for path in paths if same(path.name) == same(wanted)]
        if not any(path.is_file() for path in found):
            found += [p for p in paths if same(_stem(p.name)) == same(wanted) and p.is_file()]
        found = list({os.path.realpath(path): path for path in found}.values())
        if len(found) > 1:  # texts and sounds lie beside videos
            kinds = [_kind(path) for path in found]
            found = [path for path, kind in zip(found, kinds, strict=True) if kind == min(kinds)]
        if found:
            return found
    return []


def _kind(path: Path) -> int:
    """0: a film or a folder of films, 1: an archive, 2: a folder of frames, 3: something else."""
    from egogen.build.films import is_film  # its libraries take a second: only where needed

    if path.is_dir():
        return 2 if _images(path) else 0 if any(map(is_film, _files(path))) else 3
    return 1 if is_archive(path) else 0 if is_film(path) else 3


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name[0] != "."]


def _images(folder: Path) -> list[str]:
    return [name for name in sorted(os.listdir(folder)) if _is_image(name)]


def _is_image(name: str) -> bool:
    """By its ending; hidden ones are what macOS puts beside files."""
    path = PurePosixPath(name)
    kind = Image.registered_extensions().get(path.suffix.lower(), "PDF")
    return kind not in ("PDF", "MPEG", "HDF5") and path.name[0] != "."


def film_in(place: Path, views: Sequence[str]) -> Path:
    """The film of a folder without images: that which the first of `views` fits, or the only one.

    Of one that is there in several sizes the least deep; all else is itself. Raises EgoGenError.
    """
    files = _files(place) if place.is_dir() and not _images(place) else []
    if not files:
        return place
    from egogen.build.films import is_film

    for view in views or ("*",):
        films = [p for p in files if fnmatch(p.name.lower(), view.lower()) and is_film(p)]
        films = [p for p in films if len(p.parts) == min(len(other.parts) for other in films)]
        if len(films) == 1:
            return films[0]
    there = listed([str(path.relative_to(place)) for path in files])
    raise EgoGenError(f"{place}: holds {there}; expected one film, or --view to say which")


def clip_ids(places: Mapping[str, Path], clips: Iterable[str]) -> dict[str, str]:
    """What clips are called in the dataset: as they were found, a file without its ending.

    Behind their folders in the table where several of its `clips`, there or not, have one name.
    """
    count = Counter(_folded(_stem(PurePosixPath(clip).name)) for clip in clips)
    ids = {}
    for clip, place in places.items():
        *folders, last = PurePosixPath(clip).parts
        name = place.name if place.is_dir() else _stem(place.name)
        ids[clip] = "_".join([*folders, name]) if count[_folded(_stem(last))] > 1 else name
    return ids


@contextmanager
def open_clip(path: Path, fps: float | None) -> Iterator[Any]:
    """What gives the frame `at(seconds)`, the time of its `last()` one, and its `fps`."""
    if path.is_dir():
        yield Frames(path, fps, _images(path), lambda name: read_rgb(path / name))
    elif is_archive(path):
        archive = Archive(path)
        names = [name for name in archive.places if _is_image(name)]
        with closing(archive.tar):
            yield Frames(path, fps, names, lambda n: read_rgb(path / n, archive.read(n)))
    else:
        from egogen.build.films import Video

        with closing(Video(path)) as video:
            yield video


class Frames:
    """Images by the last number in their names, from 0 or 1 on; `fps` of them a second."""

    def __init__(self, path: Path, fps: float | None, names: Sequence[str], read: Callable):
        if fps is None:
            raise EgoGenError(f"{path}: frames need --fps, their number a second")
        self.path, self.fps, self.read = path, fps, read
        if not names:
            raise EgoGenError(f"{path}: no images in it")
        self.frames: dict[int, str] = {}
        for name in names:
            digits = re.findall(r"\d+", PurePosixPath(name).stem)
            if not digits:
                raise EgoGenError(f"{path / name}: no number in its name, expected the frame's")
            other = self.frames.setdefault(int(digits[-1]), name)
            if other != name:
                raise EgoGenError(f"{path / name}: has the number of {other}")
        self.first, self.end = min(self.frames), max(self.frames)
        step = math.gcd(*(number - self.first for number in self.frames))
        if self.first > 1:
            raise EgoGenError(f"{path}: frames are numbered from {self.first}, expected 0 or 1")
        if step > 1:
            raise EgoGenError(f"{path}: only every frame number {step} is there, expected all")

    def last(self) -> float:
        """The time of the last frame, in seconds."""
        return (self.end - self.first) / self.fps

    def at(self, seconds: float) -> Frame:
        number = self.first + int(seconds * self.fps + EPSILON)
        if number > self.end:
            end = (self.end + 1 - self.first) / self.fps
            raise EgoGenError(f"{self.path}: ends at {end:.2f} s, {seconds:.2f} s was asked for")
        if number not in self.frames:
            raise EgoGenError(f"{self.path}: frame {number}, of {seconds:.2f} s, is missing")
        return Frame(self.read(self.frames[number]), f"{number - self.first:010d}")


class Pictures:
    """The images of pairs below a folder, by name. `fps`: they are of no film."""

    fps = None

    def __init__(self, folder: Path):
        self.folder = folder
        self.archive = functools.cache(Archive)

    @functools.cached_property
    def archives(self) -> list[Path]:
        return [path for path in sorted(self.folder.rglob("*")) if is_archive(path)]

    def pair(self, *names: str) -> list[Frame]:
        """The images, called like their files. Raises EgoGenError."""
        stems = [PurePosixPath(name).stem for name in names]
        if stems[0] == stems[1]:
            stems = [f"{stem}_{number}" for number, stem in enumerate(stems)]
        frames = []
        for name, called in zip(names, stems, strict=True):
            path = self.folder / name
            data = path.read_bytes() if path.is_file() else self._member(path, name)
            own = path if path.is_file() else data
            jpeg = own if data.startswith(JPEG) else None
            frames.append(Frame(read_rgb(path, io.BytesIO(data)), called, jpeg))
        return frames

    def _member(self, path: Path, name: str) -> bytes:
        """Of the archive that the path names, else of the one that has such a name."""
        named = [(p, str(path.relative_to(p))) for p in path.parents if is_archive(p)]
        places = named or [(archive, name) for archive in self.archives]
        found = [(p, member) for p, member in places if member in self.archive(p).places]
        if len(found) != 1:
            several = ", ".join(str(archive) for archive, _ in found)
            raise EgoGenError(f"{path}: {f'is in {several}' if found else 'no such image'}")
        return self.archive(found[0][0]).read(found[0][1]).getvalue()

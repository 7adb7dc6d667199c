"""Zip archives, taken as hostile: nothing leaves the folder and nothing is overwritten."""

from __future__ import annotations

import shutil
import stat
import subprocess
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from egogen.atomic import atomic_path
from egogen.download.fetch import BLOCK, check_space
from egogen.errors import EgoGenError
from egogen.jobs import Progress


@dataclass(frozen=True)
class Member:
    """A file that came out of an archive."""

    path: Path
    size: int
    crc: int


LARGEST_RATIO = 1100  # deflate cannot shrink more than 1032 times


def unpack(archive: Path, folder: Path) -> list[Member]:
    """Extract `archive` (the .zip of a split one: with its .z01 ... beside it) -> files extracted.

    All names are checked before anything is written. A file that is there with the same bytes is
    kept, so a stopped extraction goes on.

    Raises EgoGenError for a damaged archive, a name that leaves `folder`, a link or device, a name
    that stands twice or under a file, a file there with other bytes, or too little space.
    """
    whole = joined(archive)
    try:
        with _open(whole) as source:
            members = [info for info in source.infolist() if not info.is_dir()]
            targets = safe_targets(archive, members, folder)
            missing = sum(
                info.file_size
                for info, path in zip(members, targets, strict=True)
                if not path.exists()
            )
            check_space(folder, missing, f"unpacking {archive.name}")
            with Progress(len(members), f"unpack {archive.name}", "files") as bar:
                for info, path in zip(members, targets, strict=True):
                    _extract(archive, source, info, path)
                    bar.update()
    finally:
        if whole != archive:
            whole.unlink(missing_ok=True)
    return [
        Member(path, info.file_size, info.CRC) for info, path in zip(members, targets, strict=True)
    ]


def parts_of(archive: Path) -> list[Path]:
    """All files of an archive, the .zip last."""
    split = sorted(archive.parent.glob(f"{_escaped(archive.stem)}.z[0-9][0-9]"))
    return [*split, archive]


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def joined(archive: Path) -> Path:
    """The archive as one file: itself, or its parts merged by the `zip` program.

    That program loses bytes of a member that spans three parts or more; extraction then finds the
    member damaged. (The released features have two parts.)
    """
    parts = parts_of(archive)
    if len(parts) == 1:
        return archive
    for number, part in enumerate(parts[:-1], 1):
        if part.suffix != f".z{number:02d}":
            raise EgoGenError(f"{archive}: part .z{number:02d} of the split archive is missing")
    if shutil.which("zip") is None:
        raise EgoGenError(f"{archive}: a split archive needs the program 'zip' (apt install zip)")
    check_space(archive.parent, sum(part.stat().st_size for part in parts), "merging the parts")
    whole = archive.with_name(f".{archive.stem}.merged.zip")
    whole.unlink(missing_ok=True)
    line = ["zip", "-q", "-s0", str(archive), "--out", str(whole)]
    result = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode:
        whole.unlink(missing_ok=True)
        said = " ".join((result.stdout + result.stderr).split())
        raise EgoGenError(f"{archive}: its parts cannot be merged ({said})")
    return whole


def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise EgoGenError(f"{archive}: not a whole zip archive ({error})") from None


def safe_targets(archive: Path, members: list[zipfile.ZipInfo], folder: Path) -> list[Path]:
    """Where each member goes; EgoGenError names the first that must not be extracted."""
    root, taken, targets = folder.resolve(), set(), []
    for info in members:
        name = info.filename
        place = PurePosixPath(name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise EgoGenError(f"{archive}: member {name!r} is a link or device, expected files")
        if place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name.split("/")[0]:
            raise EgoGenError(
                f"{archive}: member {name!r} leaves the folder, nothing was extracted"
            )
        target = root / place
        if not target.resolve().is_relative_to(root):
            raise EgoGenError(f"{archive}: member {name!r} leaves {root} through a link there")
        if target in taken:
            raise EgoGenError(f"{archive}: member {name!r} stands twice")
        if info.file_size > LARGEST_RATIO * max(info.compress_size, 1):
            raise EgoGenError(f"{archive}: member {name!r} claims {info.file_size} bytes")
        taken.add(target)
        targets.append(target)
    for target in targets:
        above = next((place for place in target.parents if place in taken), None)
        if above is not None or target.is_dir():
            raise EgoGenError(
                f"{archive}: member {target.relative_to(root)} is a file and a folder"
            )
    return targets


def _extract(archive: Path, source: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    if path.exists():
        if path.stat().st_size == info.file_size and crc(path) == info.CRC:
            return
        raise EgoGenError(
            f"{path}: differs from the one in {archive.name}; remove it to extract that"
        )
    try:
        with (
            source.open(info) as member,
            atomic_path(path) as temporary,
            open(temporary, "wb") as file,
        ):
            shutil.copyfileobj(member, file, BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise EgoGenError(f"{archive}: member {info.filename!r} is damaged ({error})") from None


def crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value

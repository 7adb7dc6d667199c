"""Zip archives, taken as hostile: nothing leaves the folder and nothing is overwritten."""

import glob
import shutil
import stat
import subprocess
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from egogen import EgoGenError, atomic_path, track
from egogen.download.fetch import BLOCK, check_space, digest_of

LARGEST_RATIO = 1100  # deflate cannot shrink more than 1032 times
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def unpack(archive: Path, folder: Path) -> dict[Path, list]:
    """Extract `archive` (a split one has .z01 ... beside it) -> size and CRC of each file in it.

    All names are checked before anything is written. A file that is there with the same bytes is
    kept, so a stopped extraction goes on. Raises EgoGenError for a damaged archive, a name that
    leaves `folder`, a link or device, a name that stands twice or under a file, a file there with
    other bytes, or too little space.
    """
    whole = joined(archive)
    try:
        with zipfile.ZipFile(whole) as source:
            members = [info for info in source.infolist() if not info.is_dir()]
            found = dict(zip(safe_targets(archive, members, folder), members, strict=True))
            missing = sum(info.file_size for path, info in found.items() if not path.exists())
            check_space(folder, missing, f"unpacking {archive.name}")
            for path, info in track(found.items(), len(found), f"unpack {archive.name}", "files"):
                _extract(archive, source, info, path)
    except DAMAGE as error:
        raise EgoGenError(f"{archive}: not a whole zip archive, or damaged ({error})") from None
    finally:
        if whole != archive:
            whole.unlink(missing_ok=True)
    return {path: [info.file_size, str(info.CRC)] for path, info in found.items()}


def parts_of(archive: Path) -> list[Path]:
    """All files of an archive, the .zip last."""
    parts = archive.parent.glob(f"{glob.escape(archive.stem)}.[zZ][0-9][0-9]*")
    return [*sorted(parts, key=lambda part: int(part.suffix[2:])), archive]


def joined(archive: Path) -> Path:
    """The archive as one file: itself, or its parts merged by the `zip` program.

    That program loses bytes of a member that spans three parts or more; extraction then finds the
    member damaged. (The released features have large parts.)
    """
    *parts, _ = parts_of(archive)
    for number, part in enumerate(parts, 1):
        if int(part.suffix[2:]) != number:
            raise EgoGenError(f"{archive}: part .z{number:02d} of the split archive is missing")
    if not parts:
        return archive
    if shutil.which("zip") is None:
        raise EgoGenError(f"{archive}: a split archive needs the program 'zip' (apt install zip)")
    size = sum(part.stat().st_size for part in [*parts, archive])
    check_space(archive.parent, size, "merging the parts")
    whole = archive.with_name(f".{archive.stem}.merged.zip")
    whole.unlink(missing_ok=True)
    line = ["zip", "-q", "-s0", str(archive), "--out", str(whole)]
    result = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode:
        whole.unlink(missing_ok=True)
        said = " ".join((result.stdout + result.stderr).split())
        raise EgoGenError(f"{archive}: its parts cannot be merged ({said})")
    return whole


def safe_targets(archive: Path, members: list[zipfile.ZipInfo], folder: Path) -> list[Path]:
    """Where each member goes; EgoGenError names the first that must not be extracted."""
    targets = [folder / PurePosixPath(info.filename) for info in members]
    root, taken, seen = folder.resolve(), set(targets), set()
    for info, target in zip(members, targets, strict=True):
        name, problem = info.filename, ""
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            problem = "is a link or device, expected files"
        elif ".." in target.parts or name.startswith("/") or "\\" in name or name[1:2] == ":":
            problem = "leaves the folder, nothing was extracted"
        elif not target.resolve().is_relative_to(root):
            problem = f"leaves {root} through a link there"
        elif target in seen:
            problem = "stands twice"
        elif info.file_size > LARGEST_RATIO * max(info.compress_size, 1):
            problem = f"claims {info.file_size} bytes"
        elif target.is_dir() or taken & set(target.parents):
            problem = "is a file and a folder"
        if problem:
            raise EgoGenError(f"{archive}: member {name!r} {problem}")
        seen.add(target)
    return targets


def _extract(archive: Path, source: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    if not path.exists():
        with source.open(info) as member, atomic_path(path) as file, open(file, "wb") as copy:
            shutil.copyfileobj(member, copy, BLOCK)
    elif path.stat().st_size != info.file_size or digest_of(path, "0") != str(info.CRC):
        other = f"differs from the one in {archive.name}; remove it to extract that"
        raise EgoGenError(f"{path}: {other}")

"""Tar archives of images: an index of one, and reading by seeking. Nothing is unpacked."""

import io
import re
import tarfile
from pathlib import Path, PurePosixPath

from egogen.errors import EgoGenError

SUFFIX = re.compile(r"\.(tar|tar\.gz|tar\.bz2|tar\.xz|tgz)$", re.IGNORECASE)


def is_archive(path: Path) -> bool:
    return SUFFIX.search(path.name) is not None and path.is_file()


class Archive:
    """Regular files of a tar archive. Links and devices are not looked at, nor hidden files."""

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

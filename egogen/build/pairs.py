"""Ready pairs: a table of (before image, after image, action), images as files or in archives."""

import functools
import io
from pathlib import Path, PurePosixPath
from typing import Any

from egogen.actions import safe_relative
from egogen.build.clips import TAR, Archive, Frame, is_archive
from egogen.build.forms.reading import FIELDS, values_of
from egogen.build.records import read_records
from egogen.build.rows import VIDEOS, Options, Row, Table, split_of_file
from egogen.build.table import checked
from egogen.errors import EgoGenError
from egogen.frames import JPEG, read_rgb


def read_pairs(path: Path, options: Options) -> Table:
    """Rows of a .jsonl, .csv or .parquet file, all of them. Raises EgoGenError as `read_table`."""
    split = split_of_file(path, options)
    return checked(path, read_records(path), lambda values: _row(values, split))


def _row(values: dict[str, Any], split: str) -> Row:
    texts = values_of({name.casefold(): value for name, value in values.items()}, "pairs")
    for name in ("before", "after", "action"):
        if not texts[name]:
            raise ValueError(f"no {name}, expected one of {', '.join(FIELDS['pairs'][name][1:])}")
    tar = texts["tar"] and f"{texts['tar']}/"
    before, after = tar + texts["before"], tar + texts["after"]
    for image in (before, after):
        safe_relative(image, "image", VIDEOS)
    tops = {PurePosixPath(image).parts[0] for image in (before, after) if "/" in image}
    clip = texts["clip"] or (TAR.sub("", tops.pop()) if len(tops) == 1 else "pairs")
    safe_relative(clip, "clip", VIDEOS)
    known: dict[str, Any] = {name: texts[name] for name in ("action", "id", "description")}
    named = "_".join(PurePosixPath(clip).parts)
    return Row(named, None, split=texts["split"] or split, before=before, after=after, **known)


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

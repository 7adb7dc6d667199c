"""A group of the manifest: which of its files are finished, fetching and unpacking the others.

What has been done stands in `FOLDER/.downloads/`: one JSON a file (address, size and sha256 as
first downloaded, archives still to unpack) and, for archives, a list of what came out of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egogen.atomic import read_json, write_json, write_text
from egogen.download.fetch import Patience, check_space, fetch, sha256
from egogen.download.unpack import Member, crc, parts_of, unpack
from egogen.errors import EgoGenError
from egogen.jobs import lock

RECORDS = ".downloads"


@dataclass
class Item:
    """A file of the manifest in a folder of the user's, and what is known of it."""

    entry: dict[str, Any]
    folder: Path
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self._record_file.exists():
            self.record = read_json(self._record_file)

    @property
    def name(self) -> str:
        return self.entry["name"]

    @property
    def target(self) -> Path:
        return self.folder / self.entry.get("file", self.name)

    @property
    def url(self) -> str | None:
        """The address; HF_ENDPOINT (or HF_MIRROR) stands for the hub when it is set."""
        if "url_from" in self.entry:
            return os.environ.get(self.entry["url_from"])
        hub = os.environ.get("HF_ENDPOINT") or os.environ.get("HF_MIRROR")
        url = self.entry["url"]
        return url.replace("https://huggingface.co", hub.rstrip("/"), 1) if hub else url

    @property
    def _record_file(self) -> Path:
        return self.folder / RECORDS / f"{self.name.replace('/', '--')}.json"

    @property
    def _members_file(self) -> Path:
        return self._record_file.with_suffix(".members")

    def note(self, **known: Any) -> None:
        self.record |= known
        write_json(self._record_file, self.record)

    def forget(self) -> None:
        self.record = {"url": self.record.get("url"), "sha256": self.record.get("sha256")}
        self._members_file.unlink(missing_ok=True)

    def members(self) -> list[Member]:
        """What came out of the archives, without those archives that were inside."""
        if not self._members_file.exists():
            return []
        rows = (line.split(" ", 2) for line in self._members_file.read_text().splitlines())
        return [Member(self.folder / name, int(size), int(value)) for size, value, name in rows]

    def add_members(self, found: Sequence[Member]) -> None:
        known = {member.path: member for member in [*self.members(), *found]}
        lines = [
            f"{m.size} {m.crc} {m.path.relative_to(self.folder).as_posix()}" for m in known.values()
        ]
        write_text(self._members_file, "\n".join(lines) + "\n")

    def finished(self) -> bool:
        """Whether it is all there (names and sizes; `verify` reads the bytes)."""
        if not self.record.get("finished"):
            return False
        if not self.entry.get("unpack"):
            return self.target.exists() and self.target.stat().st_size == self.record["size"]
        return all(m.path.exists() and m.path.stat().st_size == m.size for m in self.members())


def choose(group: str, files: list[dict], only: Sequence[str] | None) -> list[dict]:
    names = [entry["name"] for entry in files]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise EgoGenError(f"--only {unknown[0]}: {group} has {', '.join(names)}")
    return [entry for entry in files if only is None or entry["name"] in only]


def plan(files: list[dict], folder: Path) -> list[str]:
    """What `fetch_group` would do, a line a file."""
    lines = []
    for entry in files:
        item = Item(entry, folder.absolute())
        state = (
            "finished"
            if item.finished()
            else f"fetch {item.url or 'the address in $' + entry['url_from']}"
        )
        unpacked = ", unpack" if entry.get("unpack") else ""
        lines.append(f"{item.name} -> {item.target}{unpacked}: {state}")
    return lines


def fetch_group(
    group: dict, files: list[dict], folder: Path, patience: Patience | None = None
) -> list[str]:
    """Fetch and unpack what is not finished -> one line per file that could not be."""
    folder, bad = folder.absolute(), []
    with lock(folder / RECORDS / "lock", "downloading"):
        items = [Item(entry, folder) for entry in files]
        missing = [item for item in items if not item.finished()]
        for item in items:
            if item not in missing:
                print(f"kept:  {item.name}", flush=True)
        if missing and group.get("needs_gb"):
            there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            check_space(folder, int(group["needs_gb"] * 1e9) - there, "the whole download")
        for item in missing:
            try:
                _complete(item, patience)
            except EgoGenError as error:
                bad.append(str(error))
    return bad


def _complete(item: Item, patience: Patience | None) -> None:
    if item.record.get("finished"):
        print(f"{item.name}: files of it are gone, fetched anew", flush=True)
        item.forget()
    if "archives" not in item.record:
        _download(item, patience)
    if item.entry.get("unpack"):
        _unpack_all(item)
    item.note(finished=True)


def _download(item: Item, patience: Patience | None) -> None:
    known = item.record.get("sha256") or item.entry.get("sha256")
    if item.target.exists():
        digest = sha256(item.target)
        if known and not digest.startswith(known):
            raise EgoGenError(
                f"{item.target}: has sha256 {digest}, expected {known}; remove it to fetch it anew"
            )
        print(f"there: {item.name}", flush=True)
    elif item.url is None:
        variable = item.entry["url_from"]
        raise EgoGenError(
            f"{item.name}: set {variable} to its address, or put the file at {item.target}"
        )
    else:
        print(f"fetch: {item.name} from {item.url}", flush=True)
        digest = fetch(item.url, item.target, known, patience)
    item.note(url=item.url, sha256=digest, size=item.target.stat().st_size)
    if item.entry.get("unpack"):
        name = item.target.relative_to(item.folder).as_posix()
        item.note(archives=[[name, True]])  # True: archives inside it are unpacked too


def _unpack_all(item: Item) -> None:
    """Unpack the archive, then those that came out of it; each goes once its files are there."""
    while item.record["archives"]:
        name, look_inside = item.record["archives"][0]
        archive = item.folder / name
        if not archive.exists() and item.record.get("unpacked") != name:
            raise EgoGenError(
                f"{archive}: is gone before it was unpacked; remove {RECORDS} beside it"
            )
        if item.record.get("unpacked") != name:
            found = unpack(archive, archive.parent)
            inner = [m for m in found if look_inside and m.path.suffix == ".zip"]
            packed = {part for m in inner for part in parts_of(m.path)}
            item.add_members([m for m in found if m.path not in packed])
            names = [m.path.relative_to(item.folder).as_posix() for m in inner]
            item.record["archives"] += [[inside, False] for inside in names]
            item.note(unpacked=name)
        for part in parts_of(archive):
            part.unlink(missing_ok=True)
        item.record["archives"] = item.record["archives"][1:]
        item.note(unpacked=None)


def verify(files: list[dict], folder: Path) -> list[str]:
    """Read everything again -> one line per file that is missing or has changed."""
    bad = []
    for entry in files:
        item = Item(entry, folder.absolute())
        if not item.record.get("finished"):
            bad.append(f"{item.name}: not downloaded (or not to its end) into {folder}")
        elif entry.get("unpack"):
            for member in item.members():
                if not member.path.exists():
                    bad.append(f"{member.path}: is gone")
                elif member.path.stat().st_size != member.size or crc(member.path) != member.crc:
                    bad.append(f"{member.path}: not the bytes that were downloaded")
        elif not item.target.exists():
            bad.append(f"{item.target}: is gone")
        elif sha256(item.target) != item.record["sha256"]:
            bad.append(f"{item.target}: sha256 is not {item.record['sha256']}, as downloaded")
    return bad

"""What the project releases, by groups of entries in a manifest: where it is, fetching, unpacking.

What has been done stands in `FOLDER/.downloads/`, a JSON an entry: `members`, all files that it
brought (name -> size, digest), `archives`, those still to unpack, and whether it is `finished`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

from egogen import EgoGenError, listed, lock, read_object, write_json
from egogen.actions import safe_relative
from egogen.download import fetch as http
from egogen.download.unpack import parts_of, unpack

MANIFEST = Path(__file__).with_name("manifest.json")
SOURCES = ("hub", "dropbox")
Files = dict[str, tuple[str, int, str]]  # name below the folder -> address, bytes, digest
RECORDS = ".downloads"
AT_ONCE = 4  # files


def read_manifest(path: Path) -> dict[str, Any]:
    """{group: {"folder", "files": [entry, ...]}}, where `MANIFEST` shows the fields of entries.

    An entry is the files of a `repo` whose paths in lower case fit `pick` and not `skip`, or those
    of one `url`: `sha256` may be the beginning of the digest, `gb` is what it takes where no server
    says so. Raises EgoGenError for other lists and for a file that would leave its folder.
    """
    content = read_object(path, "an object of groups")
    try:
        for folder, files in ((group["folder"], group["files"]) for group in content.values()):
            for entry in files:
                for field in ("name", "file", "into"):
                    safe_relative(entry.get(field, entry["name"]), f"{path}: field {field!r}")
                if not folder or not {"repo", "url"} & entry.keys():
                    raise KeyError("repo", "url")
    except (AttributeError, KeyError, TypeError) as error:
        raise EgoGenError(f"{path}: {error!r}, expected what {MANIFEST.name} holds") from None
    return content


def choose(files: list[dict], source: str, only: Sequence[str] | None) -> list[dict]:
    """The entries that `source` has, all or those named."""
    entries = {e["name"]: e for e in files if e.get("source", source) == source}
    for name in only or ():
        if name not in entries:
            raise EgoGenError(f"--only {name}: {source} has {', '.join(entries)}")
    return [entries[name] for name in only or entries]


def files_of(entry: dict) -> Files:
    """What belongs to an entry, with sizes and digests as far as they are known.

    Raises EgoGenError where the hub cannot be asked, or has nothing that is picked.
    """
    if "repo" not in entry:
        size, digest = entry.get("gb", 0) * 10**9, entry.get("sha256", "")
        return {entry.get("file", entry["name"]): (entry["url"], size, digest)}
    from huggingface_hub.hf_api import HfApi, RepoFile

    hub = os.environ.get("HF_ENDPOINT") or os.environ.get("HF_MIRROR") or "https://huggingface.co"
    repo, kind, api = entry["repo"], entry.get("type", "model"), HfApi(hub.rstrip("/"))
    page = f"{api.endpoint}/{'datasets/' * (kind == 'dataset')}{repo}"

    def listing() -> list:
        api.repo_info(repo, repo_type=kind)  # fails at once where there is no network
        return [*api.list_repo_tree(repo, repo_type=kind, recursive=True)]

    try:
        tree = http.asked(f"{entry['name']}: repository {page}", listing)
    except (ValueError, KeyError, TypeError) as error:
        raise EgoGenError(f"{page}: gave no list of files ({error!r})") from None
    found, picked = {file.path: file for file in tree if isinstance(file, RepoFile)}, {}
    for path, file in found.items():
        fits = [{fnmatch(path.lower(), p) for p in entry.get(n, ())} for n in ("pick", "skip")]
        if True in fits[0] and True not in fits[1]:
            safe_relative(path, f"{page}: file")
            digest = file.lfs.sha256 if file.lfs else file.blob_id
            name = f"{entry['into']}/{path}" if "into" in entry else path
            picked[name] = (f"{page}/resolve/main/{quote(path)}", file.size, digest)
    if not picked:
        wanted = ", ".join(entry.get("pick", ()))
        raise EgoGenError(f"{entry['name']}: {page} has no {wanted}, only {listed([*found])}")
    return picked


class Item:
    """An entry of the manifest in a folder of the user's, and what is known of it."""

    def __init__(self, entry: dict[str, Any], folder: Path):
        self.entry, self.folder, self.name = entry, folder.absolute(), entry["name"]
        self.file = self.folder / RECORDS / f"{self.name.replace('/', '--')}.json"
        self.record, self.guard = read_object(self.file, needed=False), Lock()
        if "sha256" in self.record and not entry.get("unpack"):
            known = [self.record["size"], self.record["sha256"]]
            self.record.setdefault("members", {entry.get("file", self.name): known})
        pending = {name for name, _ in self.record.get("archives", ())}
        if any(not (self.folder / n).exists() for n in pending - {self.record.get("unpacked")}):
            del self.record["archives"]  # removed by hand: they have to come again
        self.members: dict[str, list] = self.record.setdefault("members", {})

    def note(self, **known: Any) -> None:
        self.record |= known
        write_json(self.file, self.record, indent=None)

    def packed(self, name: str) -> bool:
        return bool(self.entry.get("unpack") and re.search(r"\.z(ip|\d+)$", name.lower()))

    def wrong(self, read: bool = False) -> Iterator[str]:
        """A line per file that is not there as it came, by its size or (`read`) its bytes."""
        if not self.record.get("finished"):
            yield f"{self.name}: not downloaded (or not to its end) into {self.folder}"
            return
        for name, (size, digest) in self.members.items():
            path = self.folder / name
            if not path.exists():
                yield f"{path}: is gone"
            elif http.size_of(path) != size or (read and http.digest_of(path, digest) != digest):
                yield f"{path}: not the bytes that were downloaded; remove it to fetch it anew"


def fetch_group(files: list[dict], folder: Path, dry_run: bool = False) -> list[str]:
    """Fetch and unpack what is not finished -> one line per file that could not be.

    Says first what was found and where it goes; with `dry_run` that is all. Raises NoConnection,
    before anything is fetched, where the hub cannot be reached.
    """
    bad: list[str] = []
    todo: dict[Item, Files] = {}
    with lock(folder / RECORDS / "lock", "downloading", needed=not dry_run):
        for item in [Item(entry, folder) for entry in files]:
            if not any(item.wrong()):
                print(f"kept:  {item.name}", flush=True)
                continue
            try:
                todo[item] = {} if item.record.get("archives") else files_of(item.entry)
            except http.NoConnection:
                raise
            except EgoGenError as error:
                bad.append(str(error))
                continue
            for name, (url, size, _) in todo[item].items():
                does = f"{'unpack, ' * item.packed(name)}fetch {url} ({size / 1e6:.1f} MB)"
                print(f"{item.name} -> {item.folder / name}: {does}", flush=True)
        if dry_run:
            return bad
        http.check_space(folder, _room(todo), "the whole download")
        for item, found in todo.items():
            try:
                _fetch_all(item, found)
                _unpack_all(item)
            except EgoGenError as error:
                bad += str(error).splitlines()
    return bad


def _room(todo: dict[Item, Files]) -> int:
    """Bytes for all that is missing, and for the archives of one entry beside their content."""
    missing, beside = 0, 0
    for item, found in todo.items():
        for name, (_, size, _) in found.items():
            there = [item.folder / name, http.part_of(item.folder / name)]
            missing += max(size - sum(map(http.size_of, there)), 0)
        packed = [(name.lower(), size) for name, (_, size, _) in found.items() if item.packed(name)]
        pieces = 1 + any(not name.endswith(".zip") for name, _ in packed)  # merged, and its content
        if "gb" not in item.entry:  # that is with them
            beside = max(beside, pieces * sum(size for _, size in packed))
    return missing + beside


def _fetch_all(item: Item, found: Files) -> None:
    """Fetch the files of an entry. Raises EgoGenError, with a line for each that could not be."""
    if item.record.pop("finished", None):
        print(f"{item.name}: files of it are gone, fetched anew", flush=True)
        item.record.pop("archives", None)
        if "repo" in item.entry:
            item.members.clear()  # it may have others by now

    def problem(name: str) -> str:
        try:
            _fetch_one(item, name, *found[name])
        except EgoGenError as error:
            return str(error)
        return ""

    # Its threads are daemons: the command can be stopped at any time, and what has arrived stays.
    with ThreadPool(AT_ONCE) as pool:
        if problems := list(filter(None, pool.imap(problem, found))):
            raise EgoGenError("\n".join(problems))


def _fetch_one(item: Item, name: str, url: str, size: int, digest: str) -> None:
    target, known = item.folder / name, item.members.get(name)
    if known and http.size_of(target) == known[0]:
        return
    digest = known[1] if known and len(digest) < 40 else digest
    if target.exists():
        if not (found := http.digest_of(target, digest)).startswith(digest):
            other = f"has digest {found}, expected {digest}; remove it to fetch it anew"
            raise EgoGenError(f"{target}: {other}")
        print(f"there: {name}\n", end="", flush=True)
    else:
        print(f"fetch: {name} from {url}\n", end="", flush=True)
        whole = partial(http.fetch, url, target, size, digest, "repo" in item.entry)
        found = http.asked(f"{item.name}: {url}", whole)
    with item.guard:
        item.members[name] = [http.size_of(target), found]
        item.note()


def _unpack_all(item: Item) -> None:
    """Unpack the archives, then those that came out of them; each goes once its files are there."""
    if "archives" not in item.record:  # True: archives inside it are unpacked too
        names = [name for name in item.members if item.packed(name)]
        item.note(archives=[[name, True] for name in names if name.lower().endswith(".zip")])
    while item.record["archives"]:
        (name, look_inside), *others = item.record["archives"]
        archive = item.folder / name
        if item.record.get("unpacked") != name:
            found = unpack(archive, archive.parent)
            below = {path.relative_to(item.folder).as_posix(): found[path] for path in found}
            inner = [[n, False] for n in below if look_inside and n.lower().endswith(".zip")]
            item.members |= below
            for part in parts_of(archive):
                item.members.pop(part.relative_to(item.folder).as_posix(), None)
            item.note(unpacked=name, archives=[[name, look_inside], *others, *inner])
        for part in parts_of(archive):
            part.unlink(missing_ok=True)
        item.note(unpacked=None, archives=item.record["archives"][1:])
    item.note(finished=True)

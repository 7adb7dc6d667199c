"""What the project releases: groups of entries, where their files are and where they go."""

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

from egogen.actions import safe_relative
from egogen.atomic import read_object
from egogen.download.fetch import again, in_one_line
from egogen.errors import EgoGenError, listed

MANIFEST = Path(__file__).with_name("manifest.json")
SOURCES = ("hub", "dropbox")
Files = dict[str, tuple[str, int, str]]  # name below the folder -> address, bytes, digest
# Field of an entry -> its type. It is the files that are picked of a `repo`, or one `url`.
FIELDS: dict[str, type] = {
    **dict.fromkeys(("name", "source"), str),  # name: unique in its group and source
    **dict.fromkeys(("repo", "type", "into"), str),  # OWNER/NAME, model or dataset, a folder
    **dict.fromkeys(("pick", "skip"), list),  # patterns in lower case, of files in any
    **dict.fromkeys(("url", "file", "sha256"), str),  # where it goes, the digest or its beginning
    **{"gb": int, "unpack": bool},  # gb: what it takes, where no server says so
}


def read_manifest(path: Path) -> dict[str, Any]:
    """{group: {"folder", "files": [entry, ...]}}, checked.

    Raises EgoGenError naming group, file and field for anything that is not as above, for a file
    that would leave its folder, and for links that are not of the web.
    """
    content = read_object(path, "an object of groups")
    for name, group in content.items():
        files = group.get("files") if isinstance(group, dict) else None
        if not isinstance(files, list) or not isinstance(group.get("folder"), str):
            raise EgoGenError(f"{path}: group {name}: expected a 'folder' and a list of 'files'")
        for number, entry in enumerate(files):
            where = f"{path}: group {name}: file {number}"
            if not isinstance(entry, dict) or not {"repo", "url"} & entry.keys():
                raise EgoGenError(f"{where}: expected an object with a 'repo' or a 'url'")
            for field, value in ({"name": None} | entry).items():
                texts = value if isinstance(value, list) else [""]
                if not isinstance(value, FIELDS.get(field, ())) or set(map(type, texts)) != {str}:
                    known = ", ".join(f"{n} ({kind.__name__})" for n, kind in FIELDS.items())
                    raise EgoGenError(f"{where}: field {field!r}: {value!r}, expected {known}")
                if field in ("name", "file", "into"):
                    safe_relative(value, f"{where}: field {field!r}")
            if not re.match(r"https?://[^/\s]", entry.get("url", "http://x")):
                raise EgoGenError(f"{where}: url {entry['url']!r}, expected https:// or http://")
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
    with in_one_line(f"{entry['name']}: repository {page}"):
        try:
            again(lambda: api.repo_info(repo, repo_type=kind))  # at once, where there is no network
            tree = [*api.list_repo_tree(repo, repo_type=kind, recursive=True)]
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

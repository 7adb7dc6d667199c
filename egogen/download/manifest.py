"""What the project releases: groups of entries, where their files are and where they go."""

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

from egogen.actions import safe_relative
from egogen.atomic import read_object
from egogen.download.fetch import asked
from egogen.errors import EgoGenError, listed

MANIFEST = Path(__file__).with_name("manifest.json")
SOURCES = ("hub", "dropbox")
Files = dict[str, tuple[str, int, str]]  # name below the folder -> address, bytes, digest


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
        tree = asked(f"{entry['name']}: repository {page}", listing)
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

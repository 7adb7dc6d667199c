"""The list of what the project releases: groups of files, their links and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from egogen.actions import safe_relative
from egogen.atomic import read_json
from egogen.errors import EgoGenError

MANIFEST = Path(__file__).with_name("manifest.json")
# Field of a file -> its type. `url` or `url_from`, a variable that holds it, is needed.
FIELDS = {
    "name": str,  # unique in its group
    "url": str,
    "url_from": str,
    "file": str,  # where it goes in the group's folder (default: its name)
    "sha256": str,
    "unpack": bool,
}


def read_manifest(path: Path | None = None) -> dict[str, Any]:
    """{group: {"folder", "files": [...], ...}}, checked.

    Raises EgoGenError naming group, file and field for anything that is not as above, for a file
    that would leave its folder, and for links that are not of the web.
    """
    path = path or MANIFEST
    content = read_json(path)
    if not isinstance(content, dict):
        raise EgoGenError(f"{path}: expected an object of groups, found {type(content).__name__}")
    for name, group in content.items():
        files = group.get("files") if isinstance(group, dict) else None
        if not isinstance(files, list) or not isinstance(group.get("folder"), str):
            raise EgoGenError(f"{path}: group {name}: expected a 'folder' and a list of 'files'")
        for number, entry in enumerate(files):
            _check_file(entry, f"{path}: group {name}: file {number}")
    return content


def _check_file(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise EgoGenError(f"{where}: expected an object, found {type(entry).__name__}")
    for field, value in entry.items():
        kind = FIELDS.get(field)
        if kind is None:
            raise EgoGenError(f"{where}: unknown field {field!r}, expected {', '.join(FIELDS)}")
        if not isinstance(value, kind):
            raise EgoGenError(f"{where}: field {field!r}: {value!r}, expected {kind.__name__}")
    if "name" not in entry or not {"url", "url_from"} & entry.keys():
        raise EgoGenError(f"{where}: expected a 'name', and a 'url' or 'url_from'")
    if not entry.get("url", "https://").startswith(("https://", "http://")):
        raise EgoGenError(f"{where}: url {entry['url']!r}, expected https:// or http://")
    for field in ("name", "file"):
        if field in entry:
            safe_relative(entry[field], f"{where}: field {field!r}")

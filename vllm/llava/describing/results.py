"""Result files of the description loop: names, content, and what of it is finished work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from egogen.actions import ActionEntry
from egogen.atomic import read_json, write_json
from egogen.errors import EgoGenError
from egogen.provenance import record_provenance

if TYPE_CHECKING:  # importing it loads the model's libraries, which merging does not need
    from llava.describing.stores import FeatureStores

FIELDS = ("original action", "action", "description")
CLAIM_FILE = "made_by.json"


def result_file(save_path: str | os.PathLike, chunk_idx: int) -> Path:
    """`<save_path>/<last-but-one part of save_path>_<chunk_idx>.json`, as released.

    A path of one part names the file after itself; a trailing slash changes nothing.
    """
    parts = PurePath(save_path).parts
    name = parts[-2] if len(parts) > 1 and parts[-2] != "/" else parts[-1]
    return Path(save_path) / f"{name}_{chunk_idx}.json"


def read_results(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """{clip: {action: {"original action", "action", "description"}}}, checked."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise EgoGenError(f"{path}: expected an object of clips, found {type(data).__name__}")
    for clip, actions in data.items():
        for action, fields in actions.items() if isinstance(actions, dict) else [("", None)]:
            if not isinstance(fields, dict) or not all(
                isinstance(fields.get(name), str) for name in FIELDS
            ):
                raise EgoGenError(
                    f"{path}: entry {clip}/{action}: expected the texts {', '.join(FIELDS)}"
                )
    return data


def write_results(
    path: Path, entries: Iterable[ActionEntry], done: dict[str, dict[str, str]]
) -> None:
    """Write what is done (`ActionEntry.key` -> fields), in the order of the action file."""
    data: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.key in done:
            data.setdefault(entry.clip, {})[entry.action_id] = done[entry.key]
    write_json(path, data)


def finished(
    path: Path | None, entries: Sequence[ActionEntry], stores: FeatureStores
) -> dict[str, dict[str, str]]:
    """Entries of an earlier run whose text and features are all there and whole.

    Without a result file (`path` None) the features alone decide.
    """
    if path and not path.exists():
        return {}
    data, done = read_results(path) if path else {}, {}
    for entry in entries:
        fields = data.get(entry.clip, {}).get(entry.action_id)
        if path and (fields is None or fields["original action"] != entry.label):
            continue
        if stores.hold(entry):
            done[entry.key] = fields or {}
    return done


def claim_results(save_path: Path, info: dict[str, Any]) -> None:
    """Record beside the result files what made them; refuse to mix them with others.

    The number of chunks is part of it: files of another number overlap with these.
    """
    record_provenance(save_path / CLAIM_FILE, info)


def chunks_of(save_path: Path) -> int | None:
    """How many chunks the record says there are, None without a record (released results)."""
    path = save_path / CLAIM_FILE
    return read_json(path).get("num_chunks") if path.exists() else None

"""Result files of the description loop: names, content, and what of it is finished work."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch

from egogen.actions import ActionEntry
from egogen.atomic import read_json, write_json
from egogen.claims import claim
from egogen.errors import EgoGenError
from egogen.features import read_feature
from llava.model import Llava

FIELDS = ("original action", "action", "description")
INFO_FILE = "feature_info.json"


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
    path: Path, entries: Sequence[ActionEntry], roots: dict[str, Path | None], width: int, rows: int
) -> dict[str, dict[str, str]]:
    """Entries of an earlier run whose text and features are all there and whole."""
    if not path.exists():
        return {}
    data, done = read_results(path), {}
    for entry in entries:
        fields = data.get(entry.clip, {}).get(entry.action_id)
        if fields is None or fields["original action"] != entry.label:
            continue
        try:
            if roots["image"] is not None:
                read_feature(roots["image"], entry.image_0, width=width, rows=rows)
            if roots["text"] is not None:
                read_feature(roots["text"], entry.image_0, width=width)
        except EgoGenError:
            continue
        done[entry.key] = fields
    return done


def fingerprint(model: Llava) -> str:
    """A short name for the model's weights, from the parts that any tuning changes."""
    digest = hashlib.sha256()
    parts = [
        *model.model.multi_modal_projector.parameters(),
        model.model.language_model.norm.weight,
    ]
    parts.append(model.lm_head.weight[:64])
    for part in parts:
        digest.update(part.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def claim_root(root: Path, info: dict[str, Any]) -> None:
    """Record beside the features what made them; refuse a folder that holds another model's."""
    claim(root / INFO_FILE, info)

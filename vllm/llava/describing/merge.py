"""Merging the result files of all chunks, and putting the descriptions into an action file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from egogen.actions import ActionEntry, read_actions
from egogen.atomic import read_json
from egogen.errors import EgoGenError
from llava.describing.results import chunks_of, read_results

SHOWN = 20  # problems named in one line


def chunk_files(folder: Path) -> list[Path]:
    """Files `<name>_<number>.json` in the order of their numbers (2 before 10).

    Raises EgoGenError when there is none, a number is missing, or two files have the same. How many
    there should be is taken from the record beside them; without one, the highest number counts.
    """
    if not folder.is_dir():
        raise EgoGenError(f"{folder}: no such folder, expected the results of the chunks")
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*.json")):
        match = re.fullmatch(r".*_(\d+)\.json", path.name)
        if not match:
            continue
        number = int(match[1])
        if number in found:
            raise EgoGenError(
                f"{folder}: chunk {number} stands twice ({found[number].name}, {path.name})"
            )
        found[number] = path
    if not found:
        raise EgoGenError(f"{folder}: holds no result file, expected <name>_1.json and so on")
    count = chunks_of(folder) or max(found)
    gaps = sorted(set(range(1, count + 1)) - set(found))
    if gaps:
        raise EgoGenError(f"{folder}: chunks {_listed(gaps)} are missing")
    return [found[number] for number in sorted(found)]


def _listed(items: list[Any]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more


def merge_results(files: list[Path]) -> dict[str, dict[str, dict[str, str]]]:
    """All entries of all files; an entry that stands in two of them is an error."""
    merged: dict[str, dict[str, dict[str, str]]] = {}
    twice = []
    for path in files:
        for clip, actions in read_results(path).items():
            known = merged.setdefault(clip, {})
            twice += [f"{clip}/{action} ({path.name})" for action in actions if action in known]
            known.update(actions)
    if twice:
        raise EgoGenError(f"{files[0].parent}: entries stand twice: {_listed(twice)}")
    return merged


def check_complete(
    merged: dict[str, dict[str, dict[str, str]]], action_label: Path
) -> list[ActionEntry]:
    """The action file's entries, each of which must be described, and nothing else."""
    entries = read_actions(action_label)
    described = {f"{clip}/{action}" for clip, actions in merged.items() for action in actions}
    missing = [entry.key for entry in entries if entry.key not in described]
    if missing:
        raise EgoGenError(
            f"{action_label}: {len(missing)} of {len(entries)} entries are not described: "
            f"{_listed(missing)}"
        )
    unknown = sorted(described - {entry.key for entry in entries})
    if unknown:
        raise EgoGenError(f"{action_label}: has no entries {_listed(unknown)} that were described")
    return entries


def with_descriptions(
    action_label: Path, merged: dict[str, dict[str, dict[str, str]]], key: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """The original action file's content with the descriptions under `key`."""
    data = read_json(action_label)
    for clip, actions in data.items():
        for action, fields in actions.items():
            fields[key] = merged[clip][action]["description"]
    return data

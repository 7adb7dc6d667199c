"""Result files of the description loop: names, content, what is finished work, and merging them.

A result file holds the entries of one chunk, {clip: {action: texts}}:

    {"clip_0": {"3": {"original action": "#C C cuts the apple", "action": "cut the apple",
                      "description": "The left hand holds ..."}}}

While the chunk is described, each batch is added to a journal beside it (`<name>.jsonl`, a line
of the same form for each entry), so that what is written grows with the entries and not with their
square. The journal's entries belong to the chunk; they go into the result file when the run ends,
or at the next start of one that was killed.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from egogen import ActionEntry, EgoGenError, listed, read_actions
from egogen.atomic import read_json, read_object, write_json

Results = dict[str, dict[str, dict[str, str]]]  # {clip: {action: FIELDS}}
FIELDS = ("original action", "action", "description")
RECORD_FILE = "made_by.json"


def result_file(save_path: str | os.PathLike, chunk_idx: int) -> Path:
    """`<save_path>/<last-but-one part of save_path>_<chunk_idx>.json`, the released name.

    A path of one part names the file after itself; a trailing slash changes nothing.
    """
    parts = PurePath(save_path).parts
    name = parts[-2] if len(parts) > 1 and parts[-2] != "/" else parts[-1]
    return Path(save_path) / f"{name}_{chunk_idx}.json"


def journal_of(path: Path) -> Path:
    return path.with_suffix(".jsonl")


def read_results(path: Path) -> Results:
    """A result file with the entries of its journal. Raises EgoGenError naming file and entry."""
    added = _read_journal(journal_of(path))  # first: whoever publishes removes it last
    data = _checked(read_json(path), path)
    for line in added:
        for clip, actions in line.items():
            data.setdefault(clip, {}).update(actions)
    return data


def _read_journal(path: Path) -> list[Results]:
    """Its lines up to one that a killed run or a full disk has cut short: that is left out."""
    found: list[Results] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            break
        try:
            found.append(_checked(json.loads(line), path))
        except (ValueError, EgoGenError):
            break
    return found


def _checked(data: Any, path: Path) -> Results:
    if not isinstance(data, dict):
        raise EgoGenError(f"{path}: expected an object of clips, found {type(data).__name__}")
    for clip, actions in data.items():
        for action, fields in actions.items() if isinstance(actions, dict) else [("", None)]:
            known = fields if isinstance(fields, dict) else {}
            if not all(isinstance(known.get(name), str) for name in FIELDS):
                expected = f"expected the texts {', '.join(FIELDS)}"
                raise EgoGenError(f"{path}: entry {clip}/{action}: {expected}")
    return data


def append_results(
    path: Path, entries: Iterable[ActionEntry], made: dict[str, dict[str, str]]
) -> None:
    """Add what was made of `entries` (`ActionEntry.key` -> fields) to the journal of `path`."""
    lines = [{entry.clip: {entry.action_id: made[entry.key]}} for entry in entries]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with open(journal_of(path), "ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def write_results(
    path: Path, entries: Iterable[ActionEntry], done: dict[str, dict[str, str]]
) -> None:
    """Write what is done, in the order of the action file; the journal is part of it and goes."""
    data: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.key in done:
            data.setdefault(entry.clip, {})[entry.action_id] = done[entry.key]
    write_json(path, data)
    journal_of(path).unlink(missing_ok=True)


def finished(
    path: Path | None, entries: Sequence[ActionEntry], holds: Callable[[ActionEntry], bool]
) -> dict[str, dict[str, str]]:
    """Entries of an earlier run (`ActionEntry.key` -> fields) that need not be described again.

    `holds` says whether all features of an entry are there and complete. Without a result file
    (`path` None) it decides by itself.
    """
    if path and not path.exists():
        return {}
    data: Results = read_results(path) if path else {}
    done: dict[str, dict[str, str]] = {}
    for entry in entries:
        fields = data.get(entry.clip, {}).get(entry.action_id)
        if path and (fields is None or fields["original action"] != entry.label):
            continue
        if holds(entry):
            done[entry.key] = fields or {}
    return done


def chunk_files(folder: Path) -> list[Path]:
    """Files `<name>_<number>.json` in the order of their numbers (2 before 10).

    Raises EgoGenError when there is none, a number is missing, or two files have the same. How many
    there should be is taken from the record beside them; without one, as released results are, the
    highest number counts.
    """
    if not folder.is_dir():
        raise EgoGenError(f"{folder}: no such folder, expected the results of the chunks")
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*.json")):
        if match := re.fullmatch(r".*_(\d+)\.json", path.name):
            if other := found.get(number := int(match[1])):
                twice = f"chunk {number} stands twice ({other.name}, {path.name})"
                raise EgoGenError(f"{folder}: {twice}")
            found[number] = path
    if not found:
        raise EgoGenError(f"{folder}: holds no result file, expected <name>_1.json and so on")
    record = read_object(folder / RECORD_FILE, needed=False)
    count = record.get("num_chunks") or max(found)
    gaps = sorted(set(range(1, count + 1)) - set(found))
    if gaps:
        raise EgoGenError(f"{folder}: chunks {listed(gaps)} are missing")
    return [found[number] for number in sorted(found)]


def merge_results(files: list[Path]) -> Results:
    """All entries of all files; an entry that stands in two of them is an error."""
    merged: Results = {}
    twice = []
    for path in files:
        for clip, actions in read_results(path).items():
            known = merged.setdefault(clip, {})
            twice += [f"{clip}/{action} ({path.name})" for action in actions if action in known]
            known.update(actions)
    if twice:
        raise EgoGenError(f"{files[0].parent}: entries stand twice: {listed(twice)}")
    return merged


def check_complete(merged: Results, action_label: Path) -> list[ActionEntry]:
    """The action file's entries, each of which must be described, and nothing else."""
    entries = read_actions(action_label)
    described = {f"{clip}/{action}" for clip, actions in merged.items() for action in actions}
    missing = [entry.key for entry in entries if entry.key not in described]
    if missing:
        count = f"{len(missing)} of {len(entries)} entries"
        raise EgoGenError(f"{action_label}: {count} are not described: {listed(missing)}")
    unknown = sorted(described - {entry.key for entry in entries})
    if unknown:
        raise EgoGenError(f"{action_label}: has no entries {listed(unknown)} that were described")
    return entries


def with_descriptions(
    action_label: Path, merged: Results, key: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """The original action file's content with the descriptions under `key`."""
    data = read_json(action_label)
    for clip, actions in data.items():
        for action, fields in actions.items():
            fields[key] = merged[clip][action]["description"]
    return data

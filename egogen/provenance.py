"""Saying beside results what made them, and refusing to mix them with those of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from egogen.atomic import read_json, write_json
from egogen.errors import EgoGenError


def check_claim(path: Path, info: dict[str, Any]) -> None:
    """Raises EgoGenError, naming what differs, when there is a record that does not say `info`."""
    if not path.exists():
        return
    found = read_json(path)
    known = found if isinstance(found, dict) else {}
    for name, value in info.items():
        if known.get(name) != value:
            raise EgoGenError(
                f"{path}: what is here was made with {name} {known.get(name)!r}, expected "
                f"{value!r}; choose another folder, or remove this one"
            )


def claim(path: Path, info: dict[str, Any]) -> None:
    """Write the record, or check the one that is there.

    To be called when there is something to be written: a record left by a command that then found
    its input wrong would refuse the next one.
    """
    check_claim(path, info)
    if not path.exists():
        write_json(path, info)

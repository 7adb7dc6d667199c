"""Provenance records: a JSON file beside results that names what made them.

For example `made_by.json` beside generated frames holds the checkpoint's fingerprint and the seed.
A command that would add results of another origin to the folder is refused.
"""

import json
from pathlib import Path
from typing import Any

from egogen.atomic import read_object, write_json
from egogen.errors import EgoGenError


def check_provenance(path: Path, info: dict[str, Any]) -> None:
    """Raises EgoGenError, naming what differs, when there is a record that does not say `info`."""
    if not path.exists():
        return
    known = read_object(path)
    for name, value in json.loads(json.dumps(info)).items():  # tuples are lists in a file
        if known.get(name) != value:
            made = f"what is here was made with {name} {known.get(name)!r}, expected {value!r}"
            raise EgoGenError(f"{path}: {made}; choose another folder, or remove this one")


def record_provenance(path: Path, info: dict[str, Any]) -> None:
    """Write the record, or check the one that is there.

    To be called when there is something to be written: a record left by a command that then found
    its input wrong would refuse the next one.
    """
    check_provenance(path, info)
    if not path.exists():
        write_json(path, info)

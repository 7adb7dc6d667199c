"""Where things are: `settings.env`, read once; variables of the environment win over its lines."""

from __future__ import annotations

import os
import re
from pathlib import Path

from egogen.errors import EgoGenError

SETTINGS = Path(__file__).resolve().parents[1] / "settings.env"
NAMES = ("LEGO_DATASET", "LEGO_FEATURES", "LEGO_WEIGHTS")
LINE = re.compile(r"(?:export\s+)?([A-Z_]+)=(.*)")


def read_settings(path: Path | None = None) -> dict[str, str]:
    """The lines NAME=VALUE of the file (LEGO_SETTINGS names another one).

    Raises EgoGenError, with the line, for anything else and for names that nothing reads.
    """
    path = path or Path(os.environ.get("LEGO_SETTINGS") or SETTINGS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EgoGenError(f"{path}: settings cannot be read ({error})") from None
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = LINE.fullmatch(text)
        if match is None or match.group(1) not in NAMES:
            raise EgoGenError(
                f"{path}:{number}: {text!r}, expected NAME=VALUE with NAME of {', '.join(NAMES)}"
            )
        value = match.group(2).strip().strip("\"'")
        if not value:
            raise EgoGenError(f"{path}:{number}: {match.group(1)} is empty, expected a path")
        found[match.group(1)] = value
    return found


def load_settings(path: Path | None = None) -> None:
    """Put the settings into the environment, where configs and subprocesses find them."""
    for name, value in read_settings(path).items():
        if not os.environ.get(name):
            os.environ[name] = value


def missing_paths(named: dict[str, str | os.PathLike | None]) -> list[str]:
    """'NAME=PATH' of all that do not exist, or are empty; those that are None are not asked for."""
    return [
        f"{name}={path}" if path else f"{name} (not set)"
        for name, path in named.items()
        if path is not None and not (path and Path(path).exists())
    ]


def require_paths(named: dict[str, str | os.PathLike | None]) -> None:
    """Raises EgoGenError that names all missing paths at once."""
    missing = missing_paths(named)
    if missing:
        raise EgoGenError(f"no such file or folder: {', '.join(missing)}")

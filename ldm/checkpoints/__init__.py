"""Reading, writing and converting weights of stage 2."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from egogen import EgoGenError
from egogen.download.hub import local_path

FORMS = ("released", "own", "diffusers")  # that `convert` knows; here, where nothing slow is loaded


def adapter_files(given: Iterable[str]) -> list[tuple[str, float]]:
    """What --lora FILE[:SCALE] was given -> (file, scale) each. Raises EgoGenError for others."""
    found = []
    for text in given:
        file, _, scale = (text if not Path(text).is_file() else f"{text}:1").rpartition(":")
        if not Path(file).is_file() or not re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", scale):
            raise EgoGenError(f"--lora {text}: expected a file, or FILE:SCALE with a number")
        found.append((file, float(scale)))
    return found


def checkpoint_place(given: str | os.PathLike) -> Path:
    """A checkpoint's file, or its folder as diffusers has it. Raises EgoGenError for others."""
    path = Path(local_path(given))
    if not (path.is_file() or (path / "model_index.json").is_file()):
        raise EgoGenError(f"{given}: no such checkpoint")
    return path

"""Reading, writing and converting weights of stage 2."""

from collections.abc import Iterable
from pathlib import Path

from egogen import EgoGenError

FORMS = ("released", "own", "diffusers")  # that `convert` knows; here, where nothing slow is loaded


def adapter_files(given: Iterable[str]) -> list[tuple[str, float]]:
    """What --lora FILE[:SCALE] was given -> (file, scale) each. Raises EgoGenError for others."""
    found = []
    for text in given:
        path, colon, scale = (text, "", "1") if Path(text).is_file() else text.rpartition(":")
        if not Path(path).is_file():
            raise EgoGenError(f"--lora {text}: no such file, expected FILE or FILE:SCALE")
        try:
            found.append((path, float(scale)))
        except ValueError:
            raise EgoGenError(f"--lora {text}: scale {scale!r}, expected a number") from None
    return found

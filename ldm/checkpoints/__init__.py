"""Reading, writing and converting weights of stage 2."""

import math
import os
from collections.abc import Sequence

from egogen import EgoGenError

FORMS = ("released", "own", "diffusers")  # that `convert` knows; here, where nothing slow is loaded


def adapter_files(given: Sequence[str]) -> list[tuple[str, float]]:
    """What `--lora FILE[:SCALE]` was given -> (file, scale) each. Raises EgoGenError for others."""
    found = []
    for text in given:
        path, _, scale = text.rpartition(":")
        if not path or os.path.exists(text):
            path, scale = text, "1"
        try:
            number = float(scale)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise EgoGenError(f"--lora {text}: scale {scale!r}, expected FILE:SCALE with a number")
        if not os.path.isfile(path):
            raise EgoGenError(f"--lora {text}: no such file")
        found.append((path, number))
    return found

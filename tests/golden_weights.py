"""Weight files filled by the recipe that the golden metric numbers were computed with."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import recipe
import torch

DATA = Path(__file__).parent / "data" / "metrics"


def state_dict(manifest: str, only: str = "") -> dict[str, torch.Tensor]:
    """The parameters of a manifest whose name matches the pattern `only`."""
    shapes = json.loads((DATA / "manifests" / f"{manifest}.json").read_text())
    rules = json.loads((DATA / "fill_rules.json").read_text()).get(manifest, {})
    tied = rules.get("alias", {})
    state = {
        name: torch.from_numpy(_value(name, shape, rules.get("scale", ())))
        for name, shape in shapes.items()
        if re.match(only, name) and name not in tied
    }
    for name, numbers in rules.get("add", {}).items():
        for index, number in numbers.items():
            state[name][int(index)] += np.float32(number)
    return state | {name: state[other] for name, other in tied.items() if re.match(only, name)}


def _value(name: str, shape, scale) -> np.ndarray:
    if name.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(recipe.array(name, shape))
    value = recipe.tensor(name, shape)
    for pattern, kind, factor in scale:
        if re.search(pattern, name):
            if kind == "std":
                factor *= math.sqrt(math.prod(shape[1:]))
            return value * np.float32(factor)
    return value

"""A very small `LegoPipeline`, what it is called with, and unets to put into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from recipe import image
from small_model import FEATURE_DIM, IMAGE_ROWS, params_of, random_model, write_config

from ldm.pipeline import LegoPipeline


def small_pipe(root: Path, *overrides: str, variant: str = "both", seed: int = 0) -> LegoPipeline:
    """Equal arguments give equal weights, in networks of its own."""
    params = params_of(write_config(root, variant), *overrides)
    pipe = LegoPipeline.from_model(random_model(params, seed))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def one_input(i: int = 0, **more: Any) -> dict[str, Any]:
    """A photograph with what is told about it, two steps, output "pt"; `i` gives another one."""
    draw = np.random.RandomState(i).standard_normal
    return {
        "image": Image.fromarray(image(f"photo.{i}", 48, 64)),
        "description": ("a b", "b")[i % 2],
        "image_features": draw((IMAGE_ROWS, FEATURE_DIM)).astype(np.float16),
        "text_features": draw((3 + i, FEATURE_DIM)).astype(np.float16),
        "num_inference_steps": 2,
        "output_type": "pt",
    } | more


def two_inputs(**more: Any) -> dict[str, Any]:
    """The first two as a batch."""
    pairs = zip(one_input(0).items(), one_input(1).values(), strict=True)
    both = {name: [a, b] for (name, a), b in pairs}
    return both | {"num_inference_steps": 2, "output_type": "pt"} | more

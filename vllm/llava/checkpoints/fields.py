"""config.json as it stands, for checks that come before anything slow is imported."""

import os
from pathlib import Path
from typing import Any

from egogen.atomic import read_object
from egogen.errors import EgoGenError

CONFIG_FILE = "config.json"


def read_fields(folder: str | os.PathLike) -> dict[str, Any]:
    """config.json as it stands. Raises EgoGenError unless it is a LLaVA model's."""
    path = Path(folder) / CONFIG_FILE
    if not Path(folder).is_dir():
        raise EgoGenError(f"{folder}: no such folder, expected a vision-language checkpoint")
    fields = read_object(path)
    kind = fields.get("model_type")
    if not (is_released(fields) or (kind == "llava" and "vision_config" in fields)):
        raise EgoGenError(f"{path}: model type {kind!r}, expected a LLaVA checkpoint")
    return fields


def is_released(fields: dict[str, Any]) -> bool:
    """Whether config.json has the released layout."""
    return "mm_vision_tower" in fields or "mm_hidden_size" in fields


def ties_head(fields: dict[str, Any]) -> bool:
    """Whether config.json says that the head is the matrix of the embeddings."""
    text = fields.get("text_config")
    places = (fields, text if isinstance(text, dict) else {})
    return any(place.get("tie_word_embeddings") is True for place in places)

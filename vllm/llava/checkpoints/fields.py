"""config.json as it stands, for checks that come before anything slow is imported."""

import os
from pathlib import Path
from typing import Any

from egogen import EgoGenError, read_object
from egogen.download.hub import local_path

CONFIG_FILE = "config.json"


def read_fields(folder: str | os.PathLike) -> dict[str, Any]:
    """config.json as it stands. Raises EgoGenError unless it is a LLaVA model's."""
    path = Path(folder) / CONFIG_FILE
    if not Path(folder).is_dir():
        raise EgoGenError(f"{folder}: no such folder, expected a vision-language checkpoint")
    fields = read_object(path)
    kind = fields.get("model_type")
    if not (is_released(fields) or (kind == "llava" and "vision_config" in fields)):
        hint = "others are in the hub's layout already"
        raise EgoGenError(f"{path}: model type {kind!r}, expected a LLaVA checkpoint ({hint})")
    return fields


def is_llava(name: str | os.PathLike) -> bool:
    """Whether a folder, or one at the hub, holds a model of CLIP and Llama, for which there are
    modules of its own.

    Others are read as any model of transformers is. Raises EgoGenError for a place without a model.
    """
    name = local_path(name)
    if not Path(name).is_dir():
        raise EgoGenError(f"{name}: no such folder, expected a vision-language checkpoint")
    path = Path(name) / CONFIG_FILE
    fields = read_object(path)
    if not is_released(fields) and not isinstance(fields.get("model_type"), str):
        raise EgoGenError(f"{path}: names no model_type, expected a vision-language model")
    parts = [fields.get(part) or {} for part in ("vision_config", "text_config")]
    kinds = [part.get("model_type") for part in parts if isinstance(part, dict)]
    known = {"clip_vision_model", "llama", None}
    return is_released(fields) or (fields.get("model_type") == "llava" and known.issuperset(kinds))


def is_released(fields: dict[str, Any]) -> bool:
    """Whether config.json has the released layout."""
    return "mm_vision_tower" in fields or "mm_hidden_size" in fields


def ties_head(fields: dict[str, Any]) -> bool:
    """Whether config.json says that the head is the matrix of the embeddings."""
    text = fields.get("text_config")
    places = (fields, text if isinstance(text, dict) else {})
    return any(place.get("tie_word_embeddings") is True for place in places)


def tower_name(fields: dict[str, Any]) -> str | None:
    """The vision tower that a released config.json names."""
    name: Any = fields.get("mm_vision_tower")
    return name[0] if isinstance(name, list) and name else name

"""config.json of a checkpoint folder, whichever layout it has, and the fields of each layout.

"llava"  the released layout: `mm_*` fields beside those of the language model
"hub"    that of Hugging Face's llava-hf folders, which is also what tuning writes here
"""

import os
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.utils import cached_file

from egogen import EgoGenError, read_object
from llava.checkpoints.fields import CONFIG_FILE, is_released, read_fields, ties_head, tower_name
from llava.model import build_config, projector_layers
from llava.tokens import IMAGE_ID

TOWER_FOLDER = "vision_tower"
PROJECTORS = {"linear": 1, "mlp2x_gelu": 2}
_RELEASED = yaml.safe_load(Path(__file__).with_name("released.yaml").read_text("utf-8"))
TEXT_FIELDS, KNOWN_TOWERS = _RELEASED["text_fields"], _RELEASED["towers"]
ON_HUB = "a name that the hub or its local cache has, expected one (--vision-tower)"
ROPE_FIELDS = ("rope_theta", "rope_scaling")  # as older libraries had them
# Fields of hub folders made here: the released config.json that they come from, and how many rows
# were added to the vocabulary for the image mark.
ORIGIN, ADDED_ROWS = "llava_config", "added_rows"


def read_config(folder: str | os.PathLike, vision_tower: str | None = None) -> LlavaConfig:
    """The model's config. Only config.json decides, not the folder's name.

    `vision_tower` names the folder or hub name whose config describes the vision tower, in place of
    what config.json says. Raises EgoGenError for other models and for what is not supported.
    """
    path, fields = Path(folder) / CONFIG_FILE, read_fields(folder)
    try:
        if is_released(fields):
            return _released_config(fields, path, _vision_config(fields, path, vision_tower))
        return _hub_config(fields, path)
    except (TypeError, ValueError, StrictDataclassError) as error:  # of a field's type or value
        raise EgoGenError(f"{path}: {error}") from error


def _released_config(fields: dict[str, Any], path: Path, vision: CLIPVisionConfig) -> LlavaConfig:
    kind = fields.get("mm_projector_type", "linear")
    if kind not in PROJECTORS:
        raise EgoGenError(f"{path}: projector {kind!r}, expected one of {', '.join(PROJECTORS)}")
    if fields.get("mm_use_im_start_end"):
        expected = "expected false: prompts with marks around the image are not supported"
        raise EgoGenError(f"{path}: mm_use_im_start_end is true, {expected}")
    select = fields.get("mm_vision_select_feature") or "patch"
    # LLaVA-1 on Llama-2 chat was tuned with its prompt, LLaVA-1.5 (two layers) with Vicuna's.
    usual = "llama_2" if kind == "linear" else "vicuna_v1"
    text = {name: fields[name] for name in (*TEXT_FIELDS, *ROPE_FIELDS) if name in fields}
    return build_config(
        LlamaConfig(**text),
        vision,
        projector_layers=PROJECTORS[kind],
        vision_feature_layer=int(fields.get("mm_vision_select_layer", -2)),
        vision_feature_select_strategy="full" if select == "cls_patch" else "default",
        image_aspect_ratio=fields.get("image_aspect_ratio") or "square",
        conversation_template=fields.get("conversation_template") or usual,
    )


def _hub_config(fields: dict[str, Any], path: Path) -> LlavaConfig:
    config = LlavaConfig.from_dict(fields)
    act = config.projector_hidden_act
    if act not in ("linear", "gelu"):
        raise EgoGenError(f"{path}: projector_hidden_act {act!r}, expected 'linear' or 'gelu'")
    if not isinstance(layer := config.vision_feature_layer, int):
        raise EgoGenError(f"{path}: vision_feature_layer {layer}, expected one number")
    # Without an activation the second layer changes nothing; transformers asks for one.
    config.projector_layers = 1 if act == "linear" else 2
    config.image_aspect_ratio = fields.get("image_aspect_ratio", "square")
    config.conversation_template = fields.get("conversation_template", "vicuna_v1")
    added = getattr(config, ADDED_ROWS, 0)
    if added:  # only transformers needs them: an image has no row of the vocabulary here
        config.text_config.vocab_size -= added
        config.image_token_index = IMAGE_ID
    return config


def tower_folder(name: str | None, checkpoint: Path) -> Path | None:
    """The local folder of the tower that config.json names, itself or beside the weights."""
    named = [Path(name), checkpoint / name] if name else []
    places = [*named, checkpoint / TOWER_FOLDER]
    return next((place for place in places if (place / CONFIG_FILE).exists()), None)


def _vision_config(fields: dict[str, Any], path: Path, given: str | None) -> CLIPVisionConfig:
    """From the tower that is `given`, the one that config.json names, a known one, or the hub."""
    name = given or tower_name(fields)
    folder = Path(given) if given else tower_folder(name, path.parent)
    file = folder / CONFIG_FILE if folder is not None else None
    if file is None or not file.exists():
        if name in KNOWN_TOWERS:
            return CLIPVisionConfig(**KNOWN_TOWERS[name])
        file = hub_file(name, CONFIG_FILE)
    if file is None:
        raise EgoGenError(f"{path}: vision tower {name!r} is neither a folder nor {ON_HUB}")
    tower = read_object(file)
    return CLIPVisionConfig(**tower.get("vision_config", tower))


def hub_file(name: str | None, file: str) -> Path | None:
    """A file of a hub repository, downloaded or from the local cache; None when there is none."""
    try:
        return Path(cached_file(name, file)) if name else None
    except (OSError, ValueError):
        return None


def released_fields(
    config: LlavaConfig, origin: dict[str, Any] | None, tower: str
) -> dict[str, Any]:
    """config.json in the released layout; `tower` names the vision tower there.

    `origin` are the released fields that the model began with; where they still say what `config`
    says they are kept as they were.
    """
    tower = (tower_name(origin) if origin else None) or tower
    fields = _fields_of(config, tower)
    if origin:
        began = _released_config(origin, Path(CONFIG_FILE), config.vision_config)
        if _fields_of(began, tower) == fields:
            # Both matrices are written, and may have been tuned apart.
            return origin | ({"tie_word_embeddings": False} if ties_head(origin) else {})
    return {**_RELEASED["defaults"], **(origin or {}), **fields}


def _fields_of(config: LlavaConfig, tower: str) -> dict[str, Any]:
    rope = dict(config.text_config.rope_parameters)
    theta, rope_type = rope.pop("rope_theta"), rope.pop("rope_type")
    full = config.vision_feature_select_strategy == "full"
    return {
        **{name: getattr(config.text_config, name) for name in TEXT_FIELDS},
        "tie_word_embeddings": False,
        "rope_theta": theta,
        "rope_scaling": None if rope_type == "default" else {**rope, "type": rope_type},
        "mm_vision_tower": tower,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": "linear" if projector_layers(config) == 1 else "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "cls_patch" if full else "patch",
        "image_aspect_ratio": config.image_aspect_ratio,
        "conversation_template": config.conversation_template,
    }

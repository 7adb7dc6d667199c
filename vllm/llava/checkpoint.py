"""Checkpoint folders: config.json decides what a folder holds and how it is to be used.

Read are (a) folders written here, (b) the released LLaVA layout (`mm_*` fields in config.json,
names `model.mm_projector`, `model.vision_tower.vision_tower...`), (c) Hugging Face Llava folders.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, logging

from egogen.atomic import read_json
from egogen.errors import EgoGenError
from llava.conversation import Template, find_template
from llava.image_processing import ImageProcessor, load_image_processor
from llava.model import Llava, build_config
from llava.tokenizer import TextTokenizer, load_tokenizer, save_tokenizer

# Old names -> names of transformers' Llava, as regular expressions.
RELEASED_NAMES = {
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.mm_projector\.(weight|bias)$": r"model.multi_modal_projector.linear_1.\1",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
}
HUB_NAMES = {
    r"^language_model\.model\.": "model.language_model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(model\.)?vision_tower\.vision_model\.": "model.vision_tower.",
    r"^vision_tower\.": "model.vision_tower.",
    r"^multi_modal_projector\.": "model.multi_modal_projector.",
}
CLIP_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14": {**CLIP_L_14, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**CLIP_L_14, "image_size": 336},
}
HARMLESS = ("rotary_emb.inv_freq", "position_ids")  # buffers of old files, computed anew


if not sys.stderr.isatty():
    logging.disable_progress_bar()  # the library's bars fill a log; ours print lines there


@dataclass
class Loaded:
    """A model with everything that is needed to talk to it. `folder` is where it came from."""

    model: Llava
    tokenizer: TextTokenizer
    image_processor: ImageProcessor
    template: Template
    folder: Path


def read_config(folder: str | os.PathLike, vision_tower: str | None = None) -> LlavaConfig:
    """The model's config, whichever layout the folder has. Raises EgoGenError for other models."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise EgoGenError(f"{folder}: no such folder, expected a vision-language checkpoint")
    fields = read_json(path)
    if "mm_vision_tower" in fields or "mm_hidden_size" in fields:
        return _released_config(fields, path, vision_tower)
    if fields.get("model_type") != "llava" or "vision_config" not in fields:
        raise EgoGenError(
            f"{path}: model type {fields.get('model_type')!r}, expected a LLaVA checkpoint"
        )
    config = LlavaConfig.from_dict(fields)
    if "projector_layers" not in fields:  # a Hugging Face folder: LLaVA-1.5 unless it says else
        config.projector_layers = 2
        config.image_aspect_ratio = fields.get("image_aspect_ratio", "square")
        config.conversation_template = fields.get("conversation_template", "vicuna_v1")
    return config


def _released_config(
    fields: dict[str, Any], path: Path, vision_tower: str | None = None
) -> LlavaConfig:
    text = {
        name: value
        for name, value in fields.items()
        if hasattr(LlamaConfig(), name)
        and name not in ("model_type", "architectures", "torch_dtype")
    }
    kind = fields.get("mm_projector_type", "linear")
    if kind not in ("linear", "mlp2x_gelu"):
        raise EgoGenError(f"{path}: projector {kind!r}, expected 'linear' or 'mlp2x_gelu'")
    # LLaVA-1 on Llama-2 chat was tuned with its prompt, LLaVA-1.5 (two layers) with Vicuna's.
    template = fields.get("conversation_template", "llama_2" if kind == "linear" else "vicuna_v1")
    select = fields.get("mm_vision_select_feature", "patch")
    return build_config(
        LlamaConfig(**text),
        _vision_config(fields, path, vision_tower),
        projector_layers=1 if kind == "linear" else 2,
        vision_feature_layer=int(fields.get("mm_vision_select_layer", -2)),
        vision_feature_select_strategy="full" if select == "cls_patch" else "default",
        image_aspect_ratio=fields.get("image_aspect_ratio") or "square",
        conversation_template=template,
    )


def _vision_config(
    fields: dict[str, Any], path: Path, vision_tower: str | None
) -> CLIPVisionConfig:
    """From `vision_tower`, the folder itself, a folder named in the config, or a known name."""
    if isinstance(fields.get("vision_config"), dict) and not vision_tower:
        return CLIPVisionConfig(**fields["vision_config"])
    name = vision_tower or fields.get("mm_vision_tower")
    if name in KNOWN_TOWERS:
        return CLIPVisionConfig(**KNOWN_TOWERS[name])
    for folder in (Path(str(name)), path.parent / str(name), path.parent / "vision_tower"):
        if (folder / "config.json").exists():
            tower = read_json(folder / "config.json")
            return CLIPVisionConfig(**tower.get("vision_config", tower))
    raise EgoGenError(
        f"{path}: vision tower {name!r} is not known, expected a folder with its config.json "
        "(--vision-tower)"
    )


def pick_device(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto": half precision on a GPU, as released, and float32 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def load_model(
    folder: str | os.PathLike,
    *,
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    vision_tower: str | None = None,
    **options: Any,
) -> Llava:
    """The weights of a folder in any of the three layouts. `options` go to `from_pretrained`.

    Only safetensors and tensors-only .bin files are read, shard by shard; a file that would execute
    code is refused. Raises EgoGenError when a weight is missing or has another shape.
    """
    folder = Path(folder)
    config = read_config(folder, vision_tower)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise EgoGenError(f"{folder}: holds no weights (*.safetensors or *.bin)")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = Llava.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attn,
            key_mapping={**RELEASED_NAMES, **HUB_NAMES},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused by name below
            weights_only=True,
            **options,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise EgoGenError(f"{folder}: weights cannot be loaded ({error})") from error
    finally:
        logging.set_verbosity(verbosity)
    _complete(model, report, folder, vision_tower)
    return model.eval()


def _complete(model: Llava, report: dict[str, Any], folder: Path, vision_tower: str | None) -> None:
    missing = [name for name in report["missing_keys"] if not name.endswith(HARMLESS)]
    if vision_tower and missing and all("vision_tower" in name for name in missing):
        source = type(model.model.vision_tower).from_pretrained(vision_tower)
        model.model.vision_tower.load_state_dict(source.state_dict())
        missing = []
    unknown = [name for name in report["unexpected_keys"] if not name.endswith(HARMLESS)]
    for what, names in (
        ("lacks", missing),
        ("holds unknown", unknown),
        ("has another shape for", [name for name, *_ in report["mismatched_keys"]]),
    ):
        if names:
            raise EgoGenError(
                f"{folder}: the checkpoint {what} {len(names)} weights, first {sorted(names)[0]}"
            )


def load(
    folder: str | os.PathLike,
    *,
    dtype: str = "auto",
    attn: str = "sdpa",
    device: str | None = None,
    vision_tower: str | None = None,
) -> Loaded:
    """Everything needed to describe pictures with the checkpoint in `folder`."""
    target = pick_device(device)
    model = load_model(
        folder, dtype=pick_dtype(dtype, target), attn=attn, vision_tower=vision_tower
    ).to(target)
    return with_tools(model, folder)


def with_tools(model: Llava, folder: str | os.PathLike) -> Loaded:
    """The model together with tokenizer, image processor and template of its folder."""
    config, tokenizer = model.config, load_tokenizer(folder)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise EgoGenError(
            f"{folder}: tokenizer of {len(tokenizer)} pieces, expected at most the model's "
            f"{model.get_input_embeddings().num_embeddings}"
        )
    processor = load_image_processor(
        folder, config.vision_config.image_size, config.image_aspect_ratio
    )
    template = find_template(config.conversation_template)
    return Loaded(model, tokenizer, processor, template, Path(folder))


def save_tools(loaded: Loaded, folder: str | os.PathLike) -> None:
    """Tokenizer and image processor files, so that a folder with weights is complete."""
    save_tokenizer(loaded.tokenizer, folder)
    loaded.image_processor.save(folder)

"""LoRA: low-rank adapters on the language model's linear layers; all of the projector is tuned.

The result of tuning is `adapter/` (small) and, merged with the pretrained weights, a folder like
that of tuning without adapters, which the describing command loads.
"""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from egogen import EgoGenError, read_object, write_json
from egogen.download.hub import local_path
from llava.checkpoints.hub_model import HubModel, load_hub
from llava.checkpoints.load import Loaded, load_model, with_tools
from llava.model import projector_layers
from llava.train.arguments import LoraArguments
from llava.train.saving import publish, staging_folder

ADAPTER_FOLDER, ORIGIN_FILE = "adapter", "origin.json"
# Every linear layer of the language model but the head, as LLaVA and QLoRA have it.
TARGETS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
KEPT_SETTINGS = ("conversation_template", "image_aspect_ratio")  # tuning may change them


def places(loaded: Loaded | HubModel) -> dict[str, Any]:
    """Pattern of the layers with adapters, and names of the parts that learn as a whole."""
    if isinstance(loaded, HubModel):
        return {"target_modules": loaded.block_layers(), "modules_to_save": loaded.projector()}
    # A base in transformers' layout has a second layer always. Where it is the identity the adapter
    # does not name it, so that peft can put the adapter on such a base too.
    one_layer = projector_layers(loaded.model.config) == 1
    whole = "multi_modal_projector" + (".linear_1" if one_layer else "")
    return {"target_modules": TARGETS, "modules_to_save": [whole]}


def add_adapters(loaded: Loaded | HubModel, base: str, lora: LoraArguments) -> Any:
    """The model with adapters, in which only these and the projector learn (peft's PeftModel).

    `base` is the folder of the model. Raises EgoGenError when peft cannot place the adapters.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model = loaded.model
    model.name_or_path = str(base)  # else peft asks the hub when it saves
    if lora.bits != 16:  # checkpointing is switched on by the trainer
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    options = {"lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout, "bias": "none"}
    try:
        model = get_peft_model(model, LoraConfig(r=lora.lora_r, **options, **places(loaded)))
    except ValueError as error:
        raise EgoGenError(f"adapters of rank {lora.lora_r}: {error}") from None
    for parameter in model.parameters():
        # Half precision would lose small updates; DeepSpeed keeps a float32 copy by itself.
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.float()
    return model


def write_origin(adapter: Path, asked: Namespace, loaded: Loaded | HubModel) -> None:
    """What merging needs to know, beside the adapter."""
    origin: dict[str, Any] = {"base": asked.model_name_or_path}
    if isinstance(loaded, HubModel):
        origin["frames"] = {"image_size": loaded.frames.size, "aspect": loaded.frames.aspect}
    else:
        settings = {name: getattr(loaded.model.config, name) for name in KEPT_SETTINGS}
        origin |= {"vision_tower": asked.vision_tower, "config": settings}
    write_json(adapter / ORIGIN_FILE, origin)


def merge(
    adapter: str | os.PathLike,
    output: str | os.PathLike,
    *,
    base: str | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write `output`, a complete checkpoint: the base model, the adapter added into its weights.

    `base` is where the pretrained model lies now (default: where it lay); both may be hub names.
    Needs room for the base weights in `dtype` once. Raises EgoGenError for a folder that holds no
    adapter of this project.
    """
    from peft import PeftModel

    adapter = Path(local_path(adapter))
    origin = read_object(adapter / ORIGIN_FILE)
    if not (adapter / "adapter_model.safetensors").exists():
        raise EgoGenError(f"{adapter}: holds no adapter, expected adapter_model.safetensors")
    folder = local_path(base or origin["base"])
    loaded: Loaded | HubModel
    if "frames" in origin:
        loaded = load_hub(folder, dtype=str(dtype), device="cpu", **origin["frames"])
    else:
        model = load_model(folder, dtype=dtype, vision_tower=origin["vision_tower"])
        for name, value in origin["config"].items():
            setattr(model.config, name, value)
        loaded = with_tools(model, folder)
    merged = PeftModel.from_pretrained(loaded.model, adapter).merge_and_unload().to(dtype)
    staging = staging_folder(output)
    merged.save_pretrained(staging)
    loaded.save_tools(staging)
    publish(staging)

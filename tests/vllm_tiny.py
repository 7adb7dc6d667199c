"""The tiny released vision-language model: a folder in the released layout, filled by recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from recipe import tensor
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data" / "vllm"


def read(name: str):
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def released_state() -> dict[str, torch.Tensor]:
    """Every parameter by its released name; queries and keys of the language model times 3."""
    state = {}
    for name, shape in read("manifest_tiny.json").items():
        value = tensor(name, shape)
        if name.startswith("model.layers.") and name.endswith(("q_proj.weight", "k_proj.weight")):
            value = value * 3
        state[name] = torch.from_numpy(value)
    return state


def write_released(folder: Path) -> Path:
    """config.json, weights and tokenizer as the released training leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = read("configs.json")
    config = configs["config_json_written_by_the_released_training"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vision_tower").mkdir(exist_ok=True)
    (folder / "vision_tower" / "config.json").write_text(json.dumps(configs["clip_vision"]))
    save_file(released_state(), folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(DATA / name, folder / name)
    return folder

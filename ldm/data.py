"""One entry of an action file as tensors: source frame, description and the VLLM's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from egogen import EgoGenError
from egogen.actions import ActionEntry, inside
from egogen.features import read_feature
from ldm.conditioning import pad_text_rows
from ldm.pictures import read_pixels


def read_condition(entry: ActionEntry, data: DictConfig, conditioner: DictConfig) -> dict[str, Any]:
    """What the model sees of `entry`.

    -> pixels (3, R, R) in [-1, 1], prompt, and as far as the conditioning variant uses them
    image_features (I, D) and text_features (T, D), zero-padded. Raises EgoGenError naming the file.
    """
    sample: dict[str, Any] = {
        "pixels": read_pixels(inside(data.data_path, entry.image_0), data.res),
        "prompt": entry.texts[data.text_prompt_key],
    }
    roots, width = data.additional_cond_path, conditioner.feature_dim
    if conditioner.variant in ("image", "both"):
        root = _root(roots.llava_image, "llava_image")
        rows = read_feature(root, entry.image_0, width, conditioner.image_rows)
        sample["image_features"] = torch.from_numpy(rows).float()
    if conditioner.variant in ("text", "both"):
        root = _root(roots.llava_text, "llava_text")
        rows = torch.from_numpy(read_feature(root, entry.image_0, width)).float()
        sample["text_features"] = pad_text_rows(rows, conditioner.text_rows)
    return sample


def _root(path: str, name: str) -> Path:
    if not path or not Path(path).is_dir():
        raise EgoGenError(f"config: additional_cond_path.{name}={path!r}: no such folder")
    return Path(path)


def stack(samples: list[dict[str, Any]], name: str, device: torch.device) -> Tensor | None:
    """One named tensor of all samples, or None when the variant has none."""
    if name not in samples[0]:
        return None
    return torch.stack([sample[name] for sample in samples]).to(device)

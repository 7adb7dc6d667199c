"""Rows, width and memory of published models, from their configurations and without weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from llava.checkpoints.hub_model import _skipped, usual_size

DOCS = Path(__file__).parents[1] / "docs" / "stage1.md"


def text(width: int, inner: int, layers: int, heads: int, groups: int, words: int, **more) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": words,
        **more,
    }


def siglip(size: int, layers: int = 27, **more) -> dict:
    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
    return {**sizes, "num_hidden_layers": layers, "image_size": size, "patch_size": 14, **more}


SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False}
# Model, kind, configuration as published, pixels of a frame -> its rows.
PUBLISHED: list[tuple[str, str, dict[str, Any], Any]] = [
    (
        "Qwen2.5-VL-7B",
        "qwen2_5_vl",
        {
            "text_config": text(3584, 18944, 28, 28, 4, 152064),
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
            },
            "tie_word_embeddings": False,
        },
        lambda size: (size // 28) ** 2,
    ),
    (
        "Qwen3-VL-8B",
        "qwen3_vl",
        {
            "text_config": text(4096, 12288, 36, 32, 8, 151936, head_dim=128),
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 4096,
                "deepstack_visual_indexes": [8, 16, 24],
            },
            "tie_word_embeddings": False,
        },
        lambda size: (size // 32) ** 2,
    ),
    (
        "InternVL3-8B",
        "internvl",
        {
            "text_config": text(3584, 18944, 28, 28, 4, 151674, model_type="qwen2"),
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
            },
            "tie_word_embeddings": False,
        },
        lambda size: (size // 28) ** 2,
    ),
    (
        "LLaVA-OneVision-7B",
        "llava_onevision",
        {
            "text_config": text(3584, 18944, 28, 28, 4, 152000, model_type="qwen2"),
            "vision_config": siglip(384, 26, **SIGLIP),
            "tie_word_embeddings": False,
        },
        lambda size: 2 * (size // 14) ** 2 + size // 14,  # all of it, a view, ends of lines
    ),
    ("LLaVA-1.5-7B", "llava", {}, lambda size: (size // 14) ** 2),
    (
        "Idefics3-8B",
        "idefics3",
        {
            "text_config": text(4096, 14336, 32, 32, 8, 128259, model_type="llama"),
            "vision_config": siglip(364),
            "scale_factor": 2,
            "tie_word_embeddings": False,
        },
        lambda size: (size // 28) ** 2,
    ),
    (
        "SmolVLM2-2.2B",
        "smolvlm",
        {
            "text_config": text(2048, 8192, 24, 32, 32, 49280, model_type="llama"),
            "vision_config": siglip(384),
            "scale_factor": 3,
            "tie_word_embeddings": False,
        },
        lambda size: (size // 42) ** 2,
    ),
    (
        "Gemma-3-4B",
        "gemma3",
        {
            "text_config": text(2560, 10240, 34, 8, 4, 262208, head_dim=256),
            "vision_config": siglip(896, **SIGLIP),
        },
        lambda size: 256,
    ),
    (
        "Gemma-3-12B",
        "gemma3",
        {
            "text_config": text(3840, 15360, 48, 16, 8, 262208, head_dim=256),
            "vision_config": siglip(896, **SIGLIP),
        },
        lambda size: 256,
    ),
]


@pytest.mark.parametrize("name, kind, settings, rows", PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_the_documented_table(name, kind, settings, rows):
    config = CONFIG_MAPPING[kind](**settings)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    apart = tuple(f"{part}." for part in _skipped(config))
    layers = [
        (f"{key}.", part) for key, part in model.named_modules() if isinstance(part, nn.Linear)
    ]
    small = sum(p.weight.numel() for key, p in layers if not key.startswith(apart))
    whole = sum(part.numel() for part in model.parameters())  # a matrix that is used twice once
    four_bits = (0.516 * small + 2 * (whole - small)) / 1e9
    size, width = usual_size(config, {}), config.get_text_config().hidden_size
    row = f"| {size} | {rows(size):,} | {width:,} | {whole / 1e9:.2f} "
    row += f"| {2 * whole / 1e9:.1f} | {four_bits:.1f} |"
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| {name} |")]
    assert lines == [f"| {name} {row}"]

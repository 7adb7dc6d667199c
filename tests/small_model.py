"""A very small stage 2 for tests of files and of the pipeline: its config and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTokenizer

from ldm.checkpoints.layouts import Weights
from ldm.config import load_model_params
from ldm.model import LegoModel
from ldm.schema import ModelParams

# Which parts a run may have averages of.
KINDS = {"none": (), "unet": ("unet",), "both": ("unet", "conditioner")}
FEATURE_DIM, IMAGE_ROWS, RESOLUTION = 8, 4, 32


def write_config(root: Path, variant: str = "both") -> Path:
    """`root`/config.yaml, and the text tower's folder beside it."""
    text = root / "text"
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextConfig(vocab_size=8, bos_token_id=0, eos_token_id=1, **sizes).save_pretrained(text)
    words = ["<|startoftext|>", "<|endoftext|>", "a", "b", "a</w>", "b</w>"]
    (text / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (text / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(text).save_pretrained(text)
    path = root / "config.yaml"
    path.write_text(f"""
model:
  params:
    unet_config: {{params: {{model_channels: 32, channel_mult: [1, 2], attention_resolutions: [2],
      num_res_blocks: 1, num_heads: 2, context_dim: 64}}}}
    first_stage_config: {{params: {{ddconfig: {{resolution: {RESOLUTION}, ch: 32,
      ch_mult: [1, 1, 1], num_res_blocks: 1}}}}}}
    cond_stage_config: {{params: {{version: {text}}}}}
    conditioner: {{variant: {variant}, feature_dim: {FEATURE_DIM}, image_rows: {IMAGE_ROWS},
      num_heads: 2, feedforward_dim: 32}}
inference: {{steps: 3, height: 48}}
""")
    return path


def params_of(path: Path, *overrides: str):
    return load_model_params(str(path), overrides)


def random_model(params, seed: int = 0) -> LegoModel:
    torch.manual_seed(seed)
    return LegoModel(params).eval()


def random_weights(params, averaged: tuple[str, ...]) -> Weights:
    """Other values for the averages than for the live weights."""
    live, average = (random_model(params, seed).state_dict() for seed in (0, 1))
    average = {n: v for n, v in average.items() if n.split(".")[0] in averaged}
    return Weights(live, average, updates=17 if averaged else 0)


def write_small(root: Path) -> tuple[Path, ModelParams, dict[str, Weights]]:
    """Config, its parameters, and weights of each of KINDS."""
    path = write_config(root)
    params = params_of(path)
    return path, params, {k: random_weights(params, parts) for k, parts in KINDS.items()}


def assert_equal_weights(one, two):
    assert one.updates == two.updates
    for a, b in ((one.live, two.live), (one.ema, two.ema)):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name

"""The released latent diffusion model filled by recipe, as the golden numbers were computed."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import torch
from recipe import array, image, tensor
from transformers import CLIPTokenizer

from ldm.checkpoints.load import load_weights
from ldm.config import TrainConfig, load_config
from ldm.model import LegoModel

DATA = Path(__file__).parent / "data" / "ldm"
SETTINGS = json.loads((DATA / "config.json").read_text())
TINY = (
    "model.params.unet_config.params.model_channels=32",
    "model.params.unet_config.params.channel_mult=[1,2,4]",
    "model.params.unet_config.params.num_res_blocks=1",
    "model.params.unet_config.params.num_heads=4",
    "model.params.first_stage_config.params.ddconfig.ch=32",
)


def check(actual, golden, key, atol, rtol=0.0):
    """Compare with a golden array that may be stored with a stride."""
    actual = np.asarray(actual)
    np.testing.assert_array_equal(actual.shape, golden[f"{key}/shape"])
    if f"{key}/stride" in golden:
        actual = actual.reshape(-1)[:: int(golden[f"{key}/stride"])]
    np.testing.assert_allclose(actual, golden[key].reshape(actual.shape), atol=atol, rtol=rtol)


def inputs(name: str, *shape: int) -> torch.Tensor:
    """A(name, shape) of the golden files."""
    return torch.from_numpy(array(name, shape))


def pixels(name: str, height: int = 256, width: int = 256) -> torch.Tensor:
    """I(name, h, w) of the golden files: (1, 3, h, w) in [-1, 1]."""
    values = image(name, height, width).astype(np.float32) * 2 / 255 - 1
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def released_state(manifest: str = "manifest_tiny.json", only: str = "") -> dict:
    """Parameters and averages under their released names, those that begin with `only`."""
    content = json.loads((DATA / manifest).read_text())
    skipped = {"model_ema.decay", "model_ema.num_updates", *content["buffers_not_ema"]}
    return {
        name: torch.from_numpy(np.array(tensor(name, shape, 0)))
        for name, (shape, _) in content["state_dict"].items()
        if name.startswith(only) and name not in skipped
    }


@cache
def tiny_state() -> dict:
    """All of the tiny model, its text tower of the full CLIP-L size too (123 M numbers)."""
    return released_state()


@cache
def tiny_model() -> LegoModel:
    """With live UNet weights. Shared by all tests: leave it as it was found."""
    model = LegoModel(load_config(TrainConfig, [], TINY).model).eval()
    model.tokenizer = clip_tokenizer()
    load_weights(model, tiny_state(), use_ema=False)
    return model


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer from the public merges, which open_clip brings along."""
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]  # of a first line and more merges than CLIP has
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = letters + [letter + "</w>" for letter in letters]
    words += ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(merge.split()) for merge in merges])

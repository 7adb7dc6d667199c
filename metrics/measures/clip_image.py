"""CLIP ViT-L/14 similarity of a generated frame and its ground truth (only the image tower)."""

import os
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torchvision.transforms.functional import normalize

from metrics.frame_pairs import Pair
from metrics.images import CLIP_MEAN, CLIP_STD, batches, read_ahead, read_unresized, squeezed
from metrics.loading import filled, load_state_dict
from metrics.registry import METRICS, Measured, Settings, finite_mean

SIDE, WIDTH = 224, 768  # pixels of the input, numbers of the embedding


def image_tower(state: Mapping[str, torch.Tensor], path: str | os.PathLike) -> torch.nn.Module:
    """OpenAI's ViT-L/14 with QuickGELU from the `visual.*` tensors of the CLIP file `path`."""
    config = CLIPVisionCfg(layers=24, width=1024, patch_size=14, image_size=SIDE)
    make = partial(_build_vision_tower, WIDTH, config, quick_gelu=True)
    return filled(lambda: torch.nn.ModuleDict({"visual": make()}), state, path)["visual"]


def image_inputs(images: Sequence[torch.Tensor], device: str | torch.device) -> torch.Tensor:
    """Images (3, H, W) in [0, 1], of any sizes -> (n, 3, 224, 224), normalised.

    Bicubic to 224 x 224 without crop, antialiasing or clamping, as in the released code.
    """
    return normalize(squeezed(images, SIDE, "bicubic", device), CLIP_MEAN, CLIP_STD)


@torch.inference_mode()
def embeddings(tower: torch.nn.Module, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images (3, H, W) in [0, 1], of any sizes -> unit vectors (n, 768), float32."""
    found = tower(image_inputs(images, next(tower.parameters()).device))
    return found / found.norm(dim=-1, keepdim=True)


def measure(pairs: Sequence[Pair], settings: Settings) -> Measured:
    """`clip_image_sim`: mean cosine, -1 to 1."""
    path = METRICS["clip"].weight_files(settings)[0]
    tower = image_tower(load_state_dict(path, ("visual.",)), path).to(settings.device)
    values: list[float] = []
    for batch in batches(read_ahead(read_unresized, pairs, settings, "clip"), settings.batch_size):
        generated, target = (embeddings(tower, images) for images in zip(*batch, strict=True))
        values += (generated * target).sum(dim=-1).tolist()
    return Measured({"clip_image_sim": finite_mean(values)}, {"clip_image_sim": values})

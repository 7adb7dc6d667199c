"""Entries of a split, or what a caller gives, as tensors, for generation and for training.

Letters: B batch, H W size of the squeezed frames, n rows of a feature, D feature width of the VLLM,
P prompt rows (77), C context width, c latent channels, h w latent size.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from egogen import EgoGenError, stable_seed
from egogen.features.projector import Projector, read_projector
from egogen.features.store import as_feature, load_feature, open_store
from ldm.conditioning import pad_rows
from ldm.images import read_pixels, to_numpy
from ldm.schema import FeatureParams
from ldm.split import Features, Located, Split, store_folder

Sample = dict[str, Any]


@lru_cache(maxsize=8)
def _projector(root: str, device: torch.device) -> Projector:
    return read_projector(root).to(device)


def collate(samples: Sequence[Sample], features: Features, device: torch.device) -> Sample:
    """Samples of `read_condition` -> a batch on `device`: pixels (B, 3, H, W), prompt (list of B)
    and features {name: (B, n, D)}, float32, through their stores' projectors.
    """
    with torch.autocast(device.type, enabled=False):  # on CPUs it cannot stack float16
        batch = default_collate(list(samples))
    batch["pixels"] = batch["pixels"].to(device)
    batch["features"] = {name: rows.to(device) for name, rows in batch["features"].items()}
    return project(batch, features)


@torch.no_grad()
def project(batch: Sample, features: Features) -> Sample:
    """A batch with its features as the conditioner takes them: float32, (B, n, D).

    Compact stores give (B, n, vision width) and, under "stores", the folder of each sample's store,
    whose projector is applied here, on the device.
    """
    batch = dict(batch)
    stores = batch.pop("stores", {})
    batch["features"] = {name: rows.float() for name, rows in batch["features"].items()}
    for name, roots in stores.items():
        rows, distinct = batch["features"][name], sorted(set(roots))  # (B, n, vision width)
        found = _projector(distinct[0], rows.device)(rows)  # (B, n, D)
        for root in distinct[1:]:
            here = torch.tensor([store == root for store in roots], device=rows.device)  # (B,)
            found = torch.where(here[:, None, None], _projector(root, rows.device)(rows), found)
        if features[name].padded:  # padding stays zero
            found = found * (rows != 0).any(dim=-1, keepdim=True)
        batch["features"][name] = found.float()
    return batch


def to_features(arrays: Mapping[str, np.ndarray], features: Features) -> dict[str, Tensor]:
    """{name: (n, D)} -> {name: (rows, D)}: padded features are cut or zero-padded."""
    tensors = {name: torch.from_numpy(arrays[name]) for name in features}
    padded = (name for name, spec in features.items() if spec.padded)
    return tensors | {name: pad_rows(tensors[name], features[name].rows) for name in padded}


def read_features(item: Located, features: Features) -> Sample:
    """-> {"features": {name: (n, D)}, "stores": {name: folder}}, half precision.

    Features of a store with a projector are (n, vision width) and have their folder under "stores":
    `project` makes them (n, D). Raises EgoGenError naming the file.
    """
    arrays, projected = {}, {}
    for name, spec in features.items():
        store = open_store(store_folder(item, name))
        rows = None if spec.padded else spec.rows
        arrays[name] = store.stored(item.entry.image_0, spec.width, rows)
        if store.projector is not None:
            projected[name] = str(store.root)
    return {"features": to_features(arrays, features), "stores": projected}


def read_condition(item: Located, split: Split) -> Sample:
    """What the model sees of an entry when it generates: pixels (3, H, W) in [-1, 1], prompt and
    features. Raises EgoGenError naming the file, or the field of an empty prompt.
    """
    prompt = split.prompt(item)
    if not prompt.strip():
        key = split.data.text_prompt_key
        raise EgoGenError(f"{key}: is empty, expected what is to be generated")
    return {
        "pixels": read_pixels(item.source, split.data.res),
        "prompt": prompt,
        **read_features(item, split.features),
    }


def given_conditions(pixels: list, texts: dict, given: dict, table: Features) -> list[Sample]:
    """What `read_condition` gives for an entry on disk, and a negative prompt if any, of each of B
    photographs (3, R, R), their texts and rows (or files). EgoGenError for what does not fit.
    """
    count = len(pixels)
    told = {n: one_each(n, x, count, n == "negative_prompt") for n, x in texts.items()}
    for name, value in ((name, value) for name, values in told.items() for value in values):
        if not isinstance(value, str):
            raise EgoGenError(f"{name}: {type(value).__name__}, expected a text")
    for name in [name for name in given if given[name] is not None]:
        if not table:
            raise EgoGenError(f"{name}_features: given, but the conditioner is missing")
        if name not in (*table, "image", "text"):
            raise EgoGenError(f"features: {name}, expected one of {', '.join(table)}")
    rows = {name: _given_rows(name, spec, given.get(name), count) for name, spec in table.items()}
    return [
        {
            "pixels": pixels[i],
            "prompt": told["description"][i],
            **{name: told[name][i] for name in told if name != "description"},
            "features": to_features({name: rows[name][i] for name in table}, table),
        }
        for i in range(count)
    ]


def one_each(name: str, value: Any, count: int, shared: bool = False) -> list:
    """`shared`: a single one is everybody's."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    items = items * count if shared and len(items) == 1 else items
    if len(items) != count:
        raise EgoGenError(f"{name}: {len(items)} for {count} pictures, expected one for each")
    return items


def _given_rows(name: str, spec: FeatureParams, found: Any, count: int) -> list[np.ndarray]:
    """One (n, D) array per photograph of one feature."""
    what = f"{name}_features"
    if found is None:
        raise EgoGenError(f"{what}: missing, the conditioner uses the feature {name!r}")
    if isinstance(found, Tensor | np.ndarray) and found.ndim == 3:
        found = list(found) if len(found) == count else [found]
    rows = None if spec.padded else spec.rows
    arrays = []
    for item in one_each(what, found, count):
        item = to_numpy(item) if isinstance(item, Tensor) else item
        if isinstance(item, np.ndarray):
            arrays.append(as_feature(item, what, spec.width, rows))
        else:
            arrays.append(load_feature(item, spec.width, rows))
    return arrays


class TrainingPairs(Dataset):
    """Source and target frame of each entry, its description, its features and its own draws.

    A sample is asked for by (epoch, index); everything random about it (flip, t, both noises,
    dropout) depends on (seed, epoch, index) alone, so that ranks, workers and resumes agree.
    `cache` (see `ldm.cache`) stands in for the frozen encoders.
    """

    def __init__(
        self,
        split: Split,
        timesteps: int,
        latent_shape: tuple[int, int, int],
        seed: int,
        cache=None,
        fixed: bool = False,
    ):
        self.split, self.fixed, self.cache = split, fixed, cache
        self.timesteps, self.latent_shape, self.seed = timesteps, latent_shape, seed
        empty = [item.entry.key for item in split.items if not split.prompt(item).strip()]
        if empty:  # trained on as in the released code: the prompt of the unconditional branch
            key, first = split.data.text_prompt_key, empty[0]
            print(f"note: {key} is empty in {len(empty)} entries, first {first}", file=sys.stderr)

    def __len__(self) -> int:
        return len(self.split.items)

    def __getitem__(self, address: tuple[int, int]) -> Sample:
        """-> frames (pixels (3, H, W) or moments (2c, h, w)) under source and edited, prompt
        (text, or (P, C) embedding), features, and t, noise, posterior_noise, draw, scales.
        """
        epoch, index = address
        draws = self._draws(epoch, index)
        flip = draws.pop("flip")
        item = self.split.items[index]
        if self.cache is not None:
            frames = self.cache.read(index, flip)
        else:
            frames = {"prompt": self.split.prompt(item)}
            for name, path in (("source", item.source), ("edited", item.target)):
                pixels = read_pixels(path, self.split.data.res)
                frames[name] = pixels.flip(-1) if flip else pixels
        return {**frames, **read_features(item, self.split.features), **draws}

    def _draws(self, epoch: int, index: int) -> Sample:
        """t, noises, dropout and flip of a sample; for validation the same in every epoch, with t
        spread evenly over the samples and nothing dropped."""
        place = 0 if self.fixed else epoch, index
        generator = torch.Generator().manual_seed(stable_seed(self.seed, *place))
        flip, share, draw = torch.rand(3, generator=generator).tolist()
        if self.fixed:
            share, draw = (index * 0.6180339887498949) % 1, 1.0  # golden ratio: an even spread
        return {
            "flip": not self.fixed and flip < self.split.data.flip_prob,
            "t": int(share * self.timesteps),
            "draw": draw,
            "noise": torch.randn(self.latent_shape, generator=generator),
            "posterior_noise": torch.randn(self.latent_shape, generator=generator),
            "scales": torch.rand(2, generator=generator),  # of guidance, see ldm.training.distill
        }

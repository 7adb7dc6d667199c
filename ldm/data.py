"""Entries of action files as tensors, for generation (`read_condition`) and for training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from egogen import EgoGenError
from egogen.actions import ActionEntry, inside, read_actions
from egogen.features.projector import Projector, read_projector
from egogen.features.store import INFO_FILE, open_store, read_info
from egogen.seeds import stable_seed
from ldm.conditioning import pad_text_rows
from ldm.config import as_list
from ldm.images import read_pixels
from ldm.schema import ConditionerParams, DatasetParams, ModelParams


def _root(path: str, name: str) -> Path:
    if not path or not Path(path).is_dir():
        raise EgoGenError(f"config: additional_cond_path.{name}={path!r}: no such folder")
    return Path(path)


def stack(samples: list[dict[str, Any]], name: str, device: torch.device) -> Tensor | None:
    """One named tensor of all samples, float32, or None when the variant has none.

    Image features as a compact store has them go through its projector.
    """
    if name not in samples[0]:
        return None
    with torch.autocast(device.type, enabled=False):  # on CPUs it cannot stack float16
        rows = torch.stack([sample[name] for sample in samples])
    batch: dict[str, Any] = {name: rows.to(device)}
    if name == "image_features" and STORE in samples[0]:
        batch[STORE] = [sample[STORE] for sample in samples]
    return project(batch)[name].float()


@lru_cache(maxsize=8)
def _projector(root: str, device: torch.device) -> Projector:
    return read_projector(root).to(device)


@torch.no_grad()
def project(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with its features as the conditioner takes them: float32, pictures (B, I, D).

    Compact stores give (B, I, vision width) and, under STORE, the folder of each sample's store,
    whose projector is applied here, on the device.
    """
    batch = dict(batch)
    stores = batch.pop(STORE, None)
    for name in ("image_features", "text_features"):
        if name in batch:
            batch[name] = batch[name].float()
    if stores:
        rows, names = batch["image_features"], sorted(set(stores))
        found = _projector(names[0], rows.device)(rows)
        for name in names[1:]:
            here = torch.tensor([store == name for store in stores], device=rows.device)
            found = torch.where(here[:, None, None], _projector(name, rows.device)(rows), found)
        batch["image_features"] = found
    return batch


STORE = "image_store"  # folder of a compact store, beside image features that are not projected


@dataclass(frozen=True)
class Located:
    """An entry and the folders that its paths are relative to."""

    entry: ActionEntry
    frames: str
    image_root: str
    text_root: str


def locate_entries(data: DatasetParams) -> list[Located]:
    """All entries of one dataset's config; its paths may be lists, one item per training set."""
    roots = data.additional_cond_path
    columns = [
        as_list(value)
        for value in (data.edit_path, data.data_path, roots.llava_image, roots.llava_text)
    ]
    counts = [len(column) for column in columns]
    if len(set(counts[:2])) > 1 or not set(counts[2:]) <= {1, counts[0]}:
        raise EgoGenError(
            f"config: edit_path, data_path, llava_image and llava_text name {counts} paths, "
            "expected the same number each"
        )
    columns = [column * counts[0] if len(column) == 1 else column for column in columns]
    located = []
    for edit_path, *folders in zip(*columns, strict=True):
        for entry in read_actions(edit_path, (data.text_prompt_key,)):
            located.append(Located(entry, *folders))
    return located


def check_stores(located: Sequence[Located], conditioner: ConditionerParams) -> None:
    """What stores say about themselves against the config, before any work.

    Raises EgoGenError when features are of another width or number of rows than the model takes,
    or when image stores of different layouts or vision widths would meet in one batch.
    """
    kinds = {}
    for item in located if conditioner.variant != "none" else ():
        if conditioner.variant in ("image", "both"):
            kinds[_root(item.image_root, "llava_image")] = "image"
        if conditioner.variant in ("text", "both"):
            kinds[_root(item.text_root, "llava_text")] = "text"
    expected = {"width": ("feature_dim", conditioner.feature_dim)}
    expected["rows"] = ("image_rows", conditioner.image_rows)
    layouts = {}
    for root, kind in kinds.items():
        info = read_info(root)
        for name, (key, value) in expected.items():
            if info.get(name, value) != value:
                raise EgoGenError(
                    f"{root / INFO_FILE}: features with {name} {info[name]}, but the config has "
                    f"model.params.conditioner.{key}={value}: not from the model it is meant for"
                )
        most = info.get("text_rows", conditioner.text_rows)
        if kind == "text" and conditioner.text_rows > most:
            raise EgoGenError(
                f"{root / INFO_FILE}: holds the first {most} text rows, but the config has "
                f"model.params.conditioner.text_rows={conditioner.text_rows}"
            )
        if kind == "image":
            layouts[info.get("layout", "released"), info.get("vision_width")] = root
    if len(layouts) > 1:
        one, other = list(layouts.values())[:2]
        raise EgoGenError(
            f"{one} and {other}: image stores of different layout or vision width, expected one "
            "kind in a run; convert one (python -m llava.eval.convert_features)"
        )


def to_features(
    image_rows: np.ndarray | None, text_rows: np.ndarray | None, conditioner: ConditionerParams
) -> dict[str, Tensor]:
    """(I, D), (n, D), None where the variant has none -> image_features (I, D) and text_features
    (T, D), zero-padded or cut, in the precision that they have.
    """
    features = {}
    if image_rows is not None:
        features["image_features"] = torch.from_numpy(image_rows)
    if text_rows is not None:
        count = conditioner.text_rows
        rows = torch.from_numpy(text_rows)[:count]
        features["text_features"] = rows if len(rows) == count else pad_text_rows(rows, count)
    return features


def read_features(item: Located, conditioner: ConditionerParams) -> dict[str, Any]:
    """What the conditioning variant uses, see `to_features`; half precision.

    Image features of a compact store are (I, vision width) and come with STORE: `project` makes
    them (I, D). Raises EgoGenError naming the file.
    """
    variant, width = conditioner.variant, conditioner.feature_dim
    image_rows, text_rows, named = None, None, {}
    if variant in ("image", "both"):
        store = open_store(_root(item.image_root, "llava_image"))
        image_rows = store.stored(item.entry.image_0, width, conditioner.image_rows)
        if store.projector is not None:
            named = {STORE: str(store.root)}
    if variant in ("text", "both"):
        store = open_store(_root(item.text_root, "llava_text"))
        text_rows = store.stored(item.entry.image_0, width)
    return {**to_features(image_rows, text_rows, conditioner), **named}


def read_condition(
    item: Located, data: DatasetParams, conditioner: ConditionerParams
) -> dict[str, Any]:
    """What the model sees of an entry when it generates: pixels (3, R, R) in [-1, 1], prompt and
    features. Raises EgoGenError naming the file, or the field of an empty prompt.
    """
    prompt = item.entry.texts[data.text_prompt_key]
    if not prompt.strip():
        raise EgoGenError(f"{data.text_prompt_key}: is empty, expected what is to be generated")
    return {
        "pixels": read_pixels(inside(item.frames, item.entry.image_0), data.res),
        "prompt": prompt,
        **read_features(item, conditioner),
    }


class TrainingPairs(Dataset):
    """Source and target frame of each entry, its description, its features and its own draws.

    A sample is asked for by (epoch, index); everything random about it (flip, t, both noises,
    dropout) depends on (seed, epoch, index) alone, so that ranks, workers and resumes agree.
    `cache` (see `ldm.cache`) stands in for the frozen encoders.
    """

    def __init__(
        self,
        data: DatasetParams,
        model: ModelParams,
        *,
        latent_shape: tuple[int, int, int],
        seed: int,
        cache=None,
        fixed: bool = False,
    ):
        self.data, self.conditioner = data, model.conditioner
        self.timesteps, self.latent_shape, self.seed = model.timesteps, latent_shape, seed
        self.fixed, self.cache = fixed, cache
        self.located = locate_entries(data)
        check_stores(self.located, self.conditioner)
        empty = [
            i.entry.key for i in self.located if not i.entry.texts[data.text_prompt_key].strip()
        ]
        if empty:  # trained on as in the released code: the prompt of the unconditional branch
            print(
                f"note: {data.text_prompt_key} is empty in {len(empty)} entries, first {empty[0]}",
                file=sys.stderr,
            )

    def __len__(self) -> int:
        return len(self.located)

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Any]:
        """-> frames (pixels (3, R, R) or moments (2c, h, w)) under source and edited, prompt
        (text, or (77, C) embedding), features, and t, noise, posterior_noise, draw.
        """
        epoch, index = address
        draws = self._draws(epoch, index)
        flip = draws.pop("flip")
        item = self.located[index]
        if self.cache is not None:
            frames = self.cache.read(index, flip)
        else:
            frames = {"prompt": item.entry.texts[self.data.text_prompt_key]}
            for name, path in (("source", item.entry.image_0), ("edited", item.entry.image_1)):
                pixels = read_pixels(inside(item.frames, path), self.data.res)
                frames[name] = pixels.flip(-1) if flip else pixels
        return {**frames, **read_features(item, self.conditioner), **draws}

    def _draws(self, epoch: int, index: int) -> dict[str, Any]:
        """t, noises, dropout and flip of a sample; for validation the same in every epoch, with t
        spread evenly over the samples and nothing dropped."""
        place = 0 if self.fixed else epoch, index
        generator = torch.Generator().manual_seed(stable_seed(self.seed, *place))
        flip, share, draw = torch.rand(3, generator=generator).tolist()
        if self.fixed:
            share, draw = (index * 0.6180339887498949) % 1, 1.0  # golden ratio: an even spread
        return {
            "flip": not self.fixed and flip < self.data.flip_prob,
            "t": int(share * self.timesteps),
            "draw": draw,
            "noise": torch.randn(self.latent_shape, generator=generator),
            "posterior_noise": torch.randn(self.latent_shape, generator=generator),
        }

"""Where things lie below a dataset root, as released: frames per split, action files, metadata."""

from __future__ import annotations

import os
from pathlib import Path

FRAME_FOLDERS = {"ego4d": "ego4d.fho", "epickitchen": "epickitchen"}  # dataset -> folder in EgoGen/
DATASETS = tuple(FRAME_FOLDERS)
SPLITS = ("train", "val")
GROUND_TRUTH = "val_gt_for_metric"  # the target frames of val alone, which the metrics walk


def frame_folder(root: str | os.PathLike, dataset: str, split: str) -> Path:
    """Folder of `<clip>/<action>/<frame>.jpg`; `split` may also be `val_gt_for_metric`."""
    return Path(root) / "EgoGen" / FRAME_FOLDERS[dataset] / split


def action_file(root: str | os.PathLike, dataset: str, split: str) -> Path:
    return Path(root) / f"{dataset}_{split}.json"


def metadata_file(root: str | os.PathLike, dataset: str) -> Path:
    return Path(root) / f"{dataset}_metadata.json"

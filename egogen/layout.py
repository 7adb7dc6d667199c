"""Where things lie below a dataset root, as released: frames per split, action files, metadata."""

import os
import tomllib
from itertools import permutations
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


# Folders of released files as the hub, Dropbox and people name them: one of a row for another.
SAME_FOLDER = tomllib.loads(Path(__file__).with_name("folders.toml").read_text("utf-8"))["same"]


def released(path: str | os.PathLike) -> str:
    """`path`, or the same place by another of its names where only that is there."""
    for names in SAME_FOLDER if not os.path.exists(path) else ():
        for name, other in permutations(names, 2):
            place = f"/{path}/".replace(f"/{name}/", f"/{other}/", 1)[1:-1]
            if os.path.exists(place):
                return place
    return str(path)

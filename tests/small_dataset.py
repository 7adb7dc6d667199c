"""A dataset of a few plain pictures in the released layout, with features, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from egogen import layout
from egogen.features.store import write_feature

WIDTH = 8  # of the features


def picture(seed: int, size=(45, 26)) -> Image.Image:
    """A smooth random picture, (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_split(root: Path, dataset: str, split: str, clips=2, actions=2, seed=0) -> dict:
    """Frames, action file and (for val) the targets' own folder; -> the action file's content."""
    frames = layout.frame_folder(root, dataset, split)
    content: dict[str, dict] = {}
    for c in range(clips):
        clip = f"{dataset}-{split}-clip{c}"
        for a in range(actions):
            paths = [f"{clip}/{a}/frame_{number:06d}.jpg" for number in (10, 20)]
            for number, path in enumerate(paths):
                image = picture(hash((seed, c, a, number)) % 2**31)
                for folder in [frames] + (
                    [layout.frame_folder(root, dataset, layout.GROUND_TRUTH)]
                    if split == "val" and number == 1
                    else []
                ):
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    image.save(folder / path, quality=95)
            content.setdefault(clip, {})[str(a)] = {
                "image_0": paths[0],
                "image_1": paths[1],
                "action": f"#C C picks up thing {a}",
                "llava_forecast_finetune": f"The right hand picks up thing {a} of clip {c}.",
            }
    layout.action_file(root, dataset, split).write_text(json.dumps(content))
    return content


def write_dataset(root: Path, dataset: str = "ego4d", splits=("train", "val")) -> Path:
    metadata = {}
    for split in splits:
        for clip in write_split(root, dataset, split):
            metadata[clip] = {"width": 450, "height": 260, "fps": 30.0}
    layout.metadata_file(root, dataset).write_text(json.dumps(metadata))
    return root


def write_features(root: Path, dataset: str, split: str, image: Path, text: Path) -> None:
    content = json.loads(layout.action_file(root, dataset, split).read_text())
    for number, entry in enumerate(e for actions in content.values() for e in actions.values()):
        write_feature(image, entry["image_0"], np.full((256, WIDTH), number, np.float16))
        write_feature(text, entry["image_0"], np.full((3 + number, WIDTH), number, np.float16))

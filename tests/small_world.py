"""A mini dataset of a few clips, for tests of what is made from it."""

from __future__ import annotations

from pathlib import Path

from mini.world.write import write_dataset


def write_world(root: Path) -> Path:
    request = {"seed": 3, "pairs": 18, "val_pairs": 3, "actions_per_clip": 3}
    write_dataset(root, {**request, "datasets": ["ego4d"]})
    return root

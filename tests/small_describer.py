"""A tiny model that was tuned until it says another sentence of each of four frames."""

from __future__ import annotations

import json
from pathlib import Path

from small_dataset import write_split
from small_tuning import flags
from vllm_tiny import write_released

from egogen import layout
from egogen.labels import clean_label, question
from llava.train.train import main as tune

DATASET = "ego4d"
TEXTS = (
    "The left hand lifts it.",
    "The right hand opens the lid and waits.",
    "Both hands hold the pan.",
    "The cup is set down.",
)


def write_tuned(root: Path) -> Path:
    """A split of four actions in `root`, and the tuned folder, which is given."""
    content = write_split(root, DATASET, "val")
    entries = [entry for actions in content.values() for entry in actions.values()]
    rows = [
        {
            "id": text,
            "image": entry["image_0"],
            "conversations": [
                {
                    "from": "human",
                    "value": f"<image>\n{question(clean_label(entry['action'], DATASET))}",
                },
                {"from": "gpt", "value": text},
            ],
        }
        for entry, text in zip(entries, TEXTS, strict=True)
    ]
    (root / "conversations.json").write_text(json.dumps(rows))
    words = ["--model_name_or_path", write_released(root / "base")]
    words += ["--data_path", root / "conversations.json", "--output_dir", root / "tuned"]
    words += ["--image_folder", layout.frame_folder(root, DATASET, "val"), "--use_cpu", "True"]
    settings = flags(max_steps=60, learning_rate=5e-3, save_steps=1000, image_cache=4)
    tune([*map(str, words), *settings])
    return root / "tuned"


def describe_words(root: Path, out: Path, *more: object) -> list[str]:
    """What a user types to describe the split, results below `out`."""
    words = ["--image-dir", layout.frame_folder(root, DATASET, "val"), "--device", "cpu"]
    words += ["--action-label", layout.action_file(root, DATASET, "val")]
    words += ["--save-path", out / "chunks" / "val"]
    return [str(word) for word in (*words, *more)]


def feature_words(out: Path) -> list[object]:
    return ["--save-image-feature-path", out / "image", "--save-text-feature-path", out / "text"]

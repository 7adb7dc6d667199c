"""A tiny model and a few conversations about plain frames, to be tuned on in tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from small_dataset import write_split
from vllm_tiny import write_released

from egogen import layout

ROOT = Path(__file__).parents[1]
STEPS = 4


def write_inputs(root: Path) -> dict[str, Path]:
    """Flag -> path: the tiny released model, ten conversations of different length, frames."""
    content = write_split(root, "ego4d", "train", clips=5)
    entries = [entry for actions in content.values() for entry in actions.values()]
    rows = [
        {
            "id": str(number),
            "image": entry["image_0"],
            "conversations": [
                {"from": "human", "value": "<image>\nHow?"},
                {"from": "gpt", "value": entry["llava_forecast_finetune"] * (1 + number % 3)},
            ],
        }
        for number, entry in enumerate(entries)
    ]
    (root / "conversations.json").write_text(json.dumps(rows))
    return {
        "model_name_or_path": write_released(root / "model"),
        "data_path": root / "conversations.json",
        "image_folder": layout.frame_folder(root, "ego4d", "train"),
    }


def flags(**options) -> list[str]:
    """What makes a published run small enough for a test, as a command line."""
    small = {
        "max_steps": STEPS,
        "global_batch": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "report_to": "none",
        "bf16": False,
        "dataloader_num_workers": 0,
        **options,
    }
    return [str(part) for name, value in small.items() for part in (f"--{name}", value)]


def run_script(paths: dict[str, Path], output: Path, engine: str, processes: int, *more: str):
    """finetune_ego4d.sh in processes of its own; -> the finished process."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "ENGINE": engine,
        "GPUS": str(processes),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["bash", ROOT / "vllm/scripts/finetune_ego4d.sh", *paths.values(), output, *more]
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=800
    )

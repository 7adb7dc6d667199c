"""The whole tiny pipeline, killed at random moments and started again, against one left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
KILLS = 131
VARIANT = "description_image_text"
LOGS = f"logs/{VARIANT}"
# Files whose bytes follow from the seed. Others hold times and paths (logs, reports, optimizers).
SAME_BYTES = (
    "data/**/*.jpg",
    "data/*.json",
    "described/**/*.json",
    "features/**/*.npy",
    f"{LOGS}/checkpoints/last/*/images/**/*.jpg",
    f"scores/{VARIANT}.json",  # that of the descriptions names its file, by path
)


def line(out: Path) -> list[str]:
    return [sys.executable, "mini/run.py", "tiny", "--out", str(out)]


def killed(out: Path, seconds: float) -> bool:
    """Run the command and kill it, and all that it started, after so long -> whether it was."""
    with open(out.parent / "log.txt", "ab") as log:
        process = subprocess.Popen(
            line(out), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
    assert code == 0, (out.parent / "log.txt").read_text()[-3000:]
    return False


def contents(out: Path) -> dict[str, bytes]:
    found = (path for pattern in SAME_BYTES for path in out.glob(pattern) if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Both stages' weights, and the averages of stage 2."""
    state = torch.load(out / LOGS / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for path in sorted((out / "vllm").glob("*.safetensors")):
        state |= load_file(path)
    return state


def assert_same(out: Path, alone: Path, kills: int) -> None:
    ours, expected = contents(out), contents(alone)
    assert ours.keys() == expected.keys()
    assert [name for name, data in expected.items() if ours[name] != data] == []
    found, known = weights(out), weights(alone)
    assert found.keys() == known.keys()
    assert [name for name, value in known.items() if not torch.equal(found[name], value)] == []
    figures = [json.loads((o / "metrics" / "metric.json").read_text()) for o in (out, alone)]
    assert figures[0]["psnr"] == figures[1]["psnr"]
    left = [path for path in out.rglob("*") if ".tmp" in path.name and path.is_file()]
    assert len(left) <= 2 * kills, left  # at most the file that each process was writing


@pytest.mark.slow("kill test, both stages at random moments")
@pytest.mark.timeout(7200)
def test_killed_at_random_moments(tmp_path, record_property):
    """Kills in work, starting up and writing; the pipeline is run until there are KILLS."""
    alone, moments, total = tmp_path / "alone", random.Random(0), 0
    begun = time.monotonic()
    assert not killed(alone, 3600)
    whole = time.monotonic() - begun
    for number in range(KILLS):
        out, kills = tmp_path / f"run{number}", 0
        while killed(out, moments.uniform(0.02, 0.25) * whole):
            kills += 1
        assert_same(out, alone, kills)
        total += kills
        print(f"run {number}: {kills} kills, as if undisturbed; {whole:.0f} s when left alone")
        if total >= KILLS:
            break
    assert total >= KILLS
    record_property("remark", f"{total} kills")

"""A file system that fills up: one clear line, nothing half-written, and the work goes on after."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_commands import errors, run
from small_training import CONFIG, write_run

import ldm.cache
import main as training

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small_disk(tmp_path):
    """-> a function that mounts a file system of so many KiB (and may make it larger)."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kib: int) -> Path:
        again = ["-o", "remount"] if os.path.ismount(folder) else []
        line = ["mount", "-t", "tmpfs", *again, "-o", f"size={kib}k", "tmpfs", str(folder)]
        if subprocess.run(line, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        return folder

    yield size
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)  # a log may still be open here


def call(*words):
    line = [sys.executable, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def refused(done):
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1 and "No space left on device" in errors[0]
    assert "Traceback" not in done.stderr


def test_dataset(small_disk):
    out = small_disk(300) / "mini"
    words = ["-m", "mini", out, "--pairs", 12, "--seed", 3, "--datasets", "ego4d"]
    refused(call(*words))
    assert not list(out.rglob("*.tmp*"))
    small_disk(20000)
    assert call(*words).returncode == 0
    assert call("-m", "egogen.check", out).returncode == 0


def test_cache_and_training(small_disk, tmp_path, capfd):
    """In this process: importing what trains takes ten seconds each time."""
    overrides = write_run(tmp_path / "run")
    disk = small_disk(100)
    cache = ["--config", CONFIG, "--out", disk / "cache", *overrides]
    train = ["--name", "a", "--base", CONFIG, "--logdir", disk, "--train", *overrides]

    def said(main, words) -> tuple[int, list[str]]:
        code, text = run([*map(str, words)], capfd, main)
        return code, [line.partition("No space left on device")[1] for line in errors(text)]

    full = (2, ["No space left on device"])
    assert said(ldm.cache.main, cache) == full
    small_disk(4000)
    assert said(ldm.cache.main, cache) == (0, [])
    assert said(training.main, train) == full
    left = [path.name for path in (disk / "a" / "checkpoints").glob("*")]
    assert left in ([], ["last.ckpt"]), left
    small_disk(200000)
    assert said(training.main, train) == (0, [])

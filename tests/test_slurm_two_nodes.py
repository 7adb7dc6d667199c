"""The job scripts on a Slurm of two nodes: training over both, array jobs spread over them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
import slurm_cluster
import torch
from slurm_cluster import PROJECT, SMALL_JOBS, describe_alone, describe_words, logs
from small_dataset import write_split
from small_training import CONFIG, losses, write_generation, write_run
from vllm_tiny import write_released

from ldm.checkpoints.load import read_weights

pytestmark = [
    pytest.mark.slow("two-node Slurm"),
    pytest.mark.slurm,
    pytest.mark.timeout(3600),  # a busy machine
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    why = slurm_cluster.missing()
    if why:
        pytest.skip(why)
    with slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as running:
        yield running


def submit(cluster, pattern: str, *words: object) -> tuple[str, ...]:
    """Submit by a script of the project -> what the pattern finds in what it said."""
    result = subprocess.run(
        ["bash", *map(str, words)],
        env=cluster.environment | SMALL_JOBS,
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return re.search(pattern, result.stdout).groups()


def alone(*words: object) -> None:
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | SMALL_JOBS,
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_training_over_both_nodes(cluster, tmp_path):
    """A process a node, told on the way that the time ends: the weights of two on one node."""
    words = ["--logdir", tmp_path / "logs", "--base", CONFIG, "--train", *write_run(tmp_path)]
    words += ["data.params.batch_size=1", "lightning.trainer.max_steps=30"]
    words += ["lightning.checkpoint_every=1000"]
    script = ("sbatch_inference/train.sh", "--nodes", 2, "--name", "nodes", *words)
    (job,) = submit(cluster, r"train: job (\d+) on 2 nodes of 1 processes", *script)
    log = tmp_path / "logs" / "nodes" / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert cluster.states()[job] in ("PENDING", "RUNNING"), logs("train", job)
        time.sleep(0.05)
    assert cluster.places(job) == {job: ",".join(cluster.nodes)}
    cluster.run(["scancel", "--signal=USR1", "--batch", job])
    assert set(cluster.wait_for(job).values()) == {"COMPLETED"}, logs("train", job)
    said = logs("train", job)
    assert "attempt 2" in said and "stopped by a signal" in said, said
    alone("main.py", "--name", "alone", *words, "lightning.trainer.devices=2")
    one, other = (tmp_path / "logs" / name for name in ("nodes", "alone"))
    assert losses(one) == losses(other) and len(losses(one)) > 30
    ours, theirs = (read_weights(f / "checkpoints" / "last.ckpt") for f in (one, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_descriptions_are_spread_over_both_nodes(cluster, tmp_path):
    write_split(tmp_path, "ego4d", "val", clips=6)
    model = write_released(tmp_path / "vllm")
    more = ["--chunks", 2, "--batch-size", 8, "--max-new-tokens", 30, "--dataset", "ego4d"]
    script = [*describe_words(tmp_path, model, tmp_path), *more]
    array, merge = submit(cluster, r"job (\d+), 2 chunks; merge: job (\d+)", *script)
    assert set(cluster.wait_for(array).values()) == {"COMPLETED"}, logs("describe", array)
    assert set(cluster.places(array).values()) == set(cluster.nodes)
    assert set(cluster.wait_for(merge).values()) == {"COMPLETED"}, logs("merge", merge)
    merged = json.loads((tmp_path / "described" / "val.json").read_text())
    assert merged == json.loads(describe_alone(tmp_path, tmp_path / "alone").read_text())


def test_frames_are_spread_over_both_nodes(cluster, tmp_path):
    checkpoint, words = write_generation(tmp_path)
    config = "configs/generate_mini.yaml"
    script = ("sbatch_inference/submit.sh", config, checkpoint, "--chunks", 2, *words)
    (array,) = submit(cluster, r"job (\d+), 2 chunks", *script)
    assert set(cluster.wait_for(array).values()) == {"COMPLETED"}, logs("generate", array)
    assert set(cluster.places(array).values()) == set(cluster.nodes)
    other = checkpoint.rename(tmp_path / "Y.ckpt")
    alone("metrics/inference.py", "--config", config, "--ckpt", other, *words)
    frames = [
        {path.relative_to(images): path.read_bytes() for path in images.rglob("*.jpg")}
        for images in (next((tmp_path / name).glob("*/images")) for name in ("X", "Y"))
    ]
    assert len(frames[0]) == 4 and frames[0] == frames[1]

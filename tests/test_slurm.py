"""The job scripts on a real Slurm, and what they say before they submit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import slurm_cluster
import torch
from safetensors.torch import load_file
from slurm_cluster import PROJECT, SMALL_JOBS, describe_alone, describe_words, logs
from small_dataset import write_split
from small_training import CONFIG, write_generation, write_run
from small_tuning import flags, write_inputs
from vllm_tiny import write_released

from egogen import layout
from egogen.actions import read_actions
from egogen.features.store import open_store
from main import main as train

CLIPS = 12


def shell(*words: object, **environment: str) -> subprocess.CompletedProcess:
    line = ["bash", *map(str, words)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LEGO_", "SLURM_"))}
    return subprocess.run(
        line, cwd=PROJECT, env=clean | environment, capture_output=True, text=True
    )


# --- without a cluster


def test_dry_run_prints_what_would_be_submitted(tmp_path):
    write_split(tmp_path, "ego4d", "val")
    words = describe_words(tmp_path, tmp_path, tmp_path / "out")
    cluster = ["--account", "lab", "--partition", "gpu", "--qos", "high", "--time", "4:00:00"]
    result = shell(*words, "--chunks", 3, *cluster, "--gpus", 2, "--dry-run", "--batch-size", 4)
    assert result.returncode == 0, result.stderr
    describe, merge = result.stderr.strip().splitlines()
    for word in ("--array=1-3", "--account=lab", "--partition=gpu", "--qos=high"):
        assert word in describe
    assert "--time=4:00:00" in describe and "--gpus-per-node=2" in describe
    assert "--num-chunks 3 --batch-size 4" in describe
    assert "--dependency=afterany:DRY_RUN" in merge and "--gpus" not in merge
    assert not (tmp_path / "out").exists()


def test_everything_missing_is_named_at_once(tmp_path):
    result = shell("vllm/scripts/sbatch_inference.sh", "--model_path", tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: not given: image_dir action_label save_path")
    words = describe_words(tmp_path / "nowhere", tmp_path / "none", tmp_path)
    result = shell(*words)
    assert result.returncode == 2 and result.stderr.count("nowhere") == 2
    assert "model_path=" in result.stderr


@pytest.mark.parametrize("name", ["ego4d", "epickitchen"])
def test_generation_jobs(name, tmp_path):
    checkpoint = tmp_path / "X.ckpt"
    result = shell(f"test_{name}.sh", checkpoint, "--dry-run")
    assert result.returncode == 2 and f"no such file: {checkpoint}" in result.stderr
    checkpoint.touch()
    result = shell(f"test_{name}.sh", checkpoint, "--dry-run", "inference.steps=50")
    assert result.returncode == 0, result.stderr
    assert "--array=1-8" in result.stderr and "--n_chunk 8 inference.steps=50" in result.stderr
    assert f"configs/generate_{name}.yaml" in result.stderr


def test_training_job():
    words = ["--name", "x", "--base", "configs/train_ego4d.yaml", "--train"]
    result = shell("sbatch_inference/train.sh", "--nodes", 2, "--gpus", 8, "--dry-run", *words)
    assert result.returncode == 0, result.stderr
    assert "--nodes=2 --ntasks-per-node=8" in result.stderr
    assert result.stderr.strip().endswith("--train lightning.trainer.num_nodes=2")


def test_tuning_job(tmp_path):
    model, images, data = (tmp_path / name for name in ("model", "images", "data.json"))
    for folder in (model, images):
        folder.mkdir()
    script = "vllm/scripts/sbatch_finetune.sh"
    result = shell(script, "ego4d", model, data, images, tmp_path / "out", "--dry-run")
    assert result.returncode == 2 and f"DATA={data}: no such file" in result.stderr
    data.write_text("[]")
    words = ["ego4d", model, data, images, tmp_path / "out", "--nodes", 2, "--gpus", 8, "--seed", 7]
    result = shell(script, *words, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "--nodes=2 --ntasks-per-node=8" in result.stderr
    assert f"--output_dir {tmp_path / 'out'} --seed 7" in result.stderr
    result = shell(script, "ego5d", "--dry-run")
    assert result.returncode == 2 and "usage: sbatch_finetune.sh ego4d|epickitchen" in result.stderr


def test_description_job_by_the_settings(tmp_path):
    write_split(tmp_path, "ego4d", "val")
    words = ["vllm/scripts/sbatch_inference.sh", "--dataset", "ego4d", "--model_path", tmp_path]
    places = {"LEGO_DATASET": str(tmp_path), "LEGO_OUTPUT": str(tmp_path / "out")}
    result = shell(*words, "--dry-run", **places)
    assert result.returncode == 0, result.stderr
    home = tmp_path / "out/vllm/out/ego4d"
    for words in (
        f"--image-dir {layout.frame_folder(tmp_path, 'ego4d', 'val')}",
        f"--action-label {layout.action_file(tmp_path, 'ego4d', 'val')}",
        f"--save-path {home}/described/llava-llama-2-13b-chat-forecasting-finetune/val",
        f"--save-image-feature-path {home}/features/image/val",
        "--dataset ego4d",
    ):
        assert words in result.stderr, words


def test_description_job_with_the_texts_of_a_server(tmp_path):
    """Texts alone need neither weights nor a GPU, and no folders of features."""
    write_split(tmp_path, "ego4d", "val")
    words = ["vllm/scripts/sbatch_inference.sh", "--save_path", tmp_path / "out" / "val"]
    words += ["--image_dir", layout.frame_folder(tmp_path, "ego4d", "val"), "--action_label"]
    words += [layout.action_file(tmp_path, "ego4d", "val"), "--engine", "openai", "--base-url"]
    words += ["http://localhost:8000/v1", "--model", "m", "--dry-run"]
    result = shell(*words, LEGO_DATASET="", LEGO_OUTPUT="")
    assert result.returncode == 2 and "not given: model_path save_image" in result.stderr
    result = shell(*words, "--text-only", "--concurrency", "64")
    assert result.returncode == 0, result.stderr
    describing, merging = result.stderr.splitlines()[:2]
    flags = "--engine openai --base-url http://localhost:8000/v1 --model m"
    assert f"{flags} --text-only --concurrency 64" in describing and "gpus" not in describing
    assert "--model-path" not in describing and "feature-path" not in describing
    assert f"--save-path {tmp_path / 'out' / 'val'} " in describing and "merge" in merging
    served = shell(*words, "--text-only", "--dataset", "ego4d", LEGO_DATASET=str(tmp_path))
    assert served.returncode == 0 and "feature-path" not in served.stderr, served.stderr


def test_bad_values():
    result = shell("sbatch_inference/submit.sh", "a", "b", "--chunks")
    assert result.returncode == 2 and "--chunks needs a value" in result.stderr


# --- on a cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    why = slurm_cluster.missing()
    if why:
        pytest.skip(why)
    with slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def described(cluster, tmp_path_factory):
    """Both chunks described by array tasks, the first one killed and queued again on the way."""
    root = tmp_path_factory.mktemp("pipeline")
    write_split(root, "ego4d", "val", clips=CLIPS)
    words = describe_words(root, write_released(root / "vllm"), root)
    flags = ["--chunks", "2", "--batch-size", "1", "--max-new-tokens", "30", "--dataset", "ego4d"]
    result = cluster.run(["bash", *map(str, words), *flags], **SMALL_JOBS)
    array, merge = re.search(r"job (\d+), 2 chunks; merge: job (\d+)", result.stdout).groups()
    first = read_actions(layout.action_file(root, "ego4d", "val"))[0].image_0
    while not (root / "text" / Path(first).with_suffix(".npy")).exists():
        assert cluster.states()[f"{array}_1"] in ("PENDING", "RUNNING"), logs("describe", array)
        time.sleep(0.02)
    cluster.run(["scontrol", "requeue", f"{array}_1"])
    return root, cluster.wait_for(array), cluster.wait_for(merge), array, merge


@pytest.mark.slurm
def test_descriptions_survive_a_requeue(cluster, described, tmp_path):
    root, states, merged, array, merge = described
    assert set(states.values()) == {"COMPLETED"}, logs("describe", array)
    assert "attempt 2" in logs("describe", array)
    assert set(merged.values()) == {"COMPLETED"}, logs("merge", merge)
    undisturbed = json.loads(describe_alone(root, tmp_path).read_text())
    assert json.loads((root / "described" / "val.json").read_text()) == undisturbed
    entries = read_actions(root / "described" / "val_actions.json")
    assert len(entries) == 2 * CLIPS
    for entry in entries:
        for kind in ("image", "text"):
            one, other = (
                open_store(place / kind).read(entry.image_0) for place in (root, tmp_path)
            )
            np.testing.assert_allclose(one, other, atol=4e-3, rtol=2e-3)


@pytest.mark.slurm
def test_merge_job_says_which_chunks_are_missing(cluster, described, tmp_path):
    root = described[0]
    words = describe_words(root, tmp_path, tmp_path)  # a model that is none: every chunk fails
    result = cluster.run(["bash", *map(str, words), "--chunks", "2"], **SMALL_JOBS)
    array, merge = re.search(r"job (\d+), 2 chunks; merge: job (\d+)", result.stdout).groups()
    assert set(cluster.wait_for(merge).values()) == {"FAILED"}
    said = logs("merge", merge)
    assert "chunks that did not succeed: 1 2" in said and "error:" in said
    assert not (tmp_path / "described" / "val.json").exists()


@pytest.mark.slurm
def test_generation_and_metrics(cluster, described, tmp_path_factory):
    root = tmp_path_factory.mktemp("stage2")
    checkpoint, words = write_generation(root)
    line = ["bash", "sbatch_inference/submit.sh", "configs/generate_mini.yaml", str(checkpoint)]
    result = subprocess.run(
        [*line, "--chunks", "2", *words],
        env=cluster.environment | SMALL_JOBS,
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    array = re.search(r"job (\d+), 2 chunks", result.stdout).group(1)
    assert set(cluster.wait_for(array).values()) == {"COMPLETED"}, logs("generate", array)
    images = next((root / "X").glob("*/images"))
    assert len(list(images.rglob("*.jpg"))) == 4
    measure = [sys.executable, "metrics/all_metrics_in_one.py", "--dataset", "ego4d"]
    measure += ["--gen_path", images, "--gt_path", root / "EgoGen/ego4d.fho/val_gt_for_metric"]
    measure += ["--edit_file", root / "ego4d_val.json", "--llava_key", "llava_forecast_finetune"]
    measure += ["--metrics", "psnr", "--out", root / "metrics"]
    wrapped = " ".join(map(str, measure))
    sbatch = ["sbatch", "--parsable", f"--output={root}/metrics.log", f"--chdir={PROJECT}"]
    job = cluster.run([*sbatch, f"--wrap={wrapped}"]).stdout.strip()
    assert set(cluster.wait_for(job).values()) == {"COMPLETED"}, (root / "metrics.log").read_text()
    assert list((root / "metrics").rglob("metric.json"))


def losses(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "samples_per_s"} for line in lines]


@pytest.mark.slurm
def test_training_near_the_end_of_its_time_is_queued_again(cluster, tmp_path_factory):
    """Told by Slurm's signal, it writes a checkpoint; the second attempt ends as if undisturbed."""
    root = tmp_path_factory.mktemp("training")
    words = ["--logdir", root / "logs", "--base", CONFIG, "--train", *write_run(root)]
    words += ["lightning.trainer.max_steps=60", "lightning.checkpoint_every=1000"]
    words = [str(word) for word in words]
    line = ["bash", "sbatch_inference/train.sh", "--name", "queued", *words]
    environment = cluster.environment | SMALL_JOBS
    result = subprocess.run(line, env=environment, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    job = re.search(r"train: job (\d+)", result.stdout).group(1)
    log = root / "logs" / "queued" / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert cluster.states()[job] in ("PENDING", "RUNNING"), logs("train", job)
        time.sleep(0.05)
    cluster.run(["scancel", "--signal=USR1", "--batch", job])
    assert set(cluster.wait_for(job).values()) == {"COMPLETED"}, logs("train", job)
    said = logs("train", job)
    assert "attempt 2" in said and "stopped by a signal" in said, said
    torch.set_num_threads(1)  # as the job has
    train(["--name", "alone", *words])
    assert losses(root / "logs" / "queued") == losses(root / "logs" / "alone")


@pytest.mark.slow  # eight processes; its parts are in tests/test_vllm_tuning.py and ..._own.py
@pytest.mark.slurm
def test_tuning_near_the_end_of_its_time_is_queued_again(cluster, tmp_path_factory):
    """Two processes, told by Slurm's signal, write a checkpoint; the end is as if undisturbed."""
    root = tmp_path_factory.mktemp("tuning")
    paths = [str(path) for path in write_inputs(root).values()]
    more = flags(max_steps=90, save_steps=5, per_device_train_batch_size=2)
    line = ["bash", "vllm/scripts/sbatch_finetune.sh", "ego4d", *paths, str(root / "out"), *more]
    small = {**SMALL_JOBS, "ENGINE": "ddp", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    environment = cluster.environment | small | {"LEGO_SBATCH": "--ntasks-per-node=2 --overcommit"}
    result = subprocess.run(line, env=environment, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    job = re.search(r"tune: job (\d+)", result.stdout).group(1)
    while not (root / "out" / "checkpoint-5" / "whole.json").exists():
        assert cluster.states()[job] in ("PENDING", "RUNNING"), logs("tune", job)
        time.sleep(0.05)
    cluster.run(["scancel", "--signal=USR1", "--batch", job])
    assert set(cluster.wait_for(job).values()) == {"COMPLETED"}, logs("tune", job)
    said = logs("tune", job)
    assert "attempt 2" in said and re.search(r"step \d+: stopped by a signal", said), said
    alone = ["bash", "vllm/scripts/finetune_ego4d.sh", *paths, str(root / "alone"), *more]
    environment = {**os.environ, **small, "GPUS": "2"}
    subprocess.run(alone, cwd=PROJECT, check=True, capture_output=True, env=environment)
    one, other = (load_file(root / name / "model.safetensors") for name in ("out", "alone"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=1e-5, msg=name)

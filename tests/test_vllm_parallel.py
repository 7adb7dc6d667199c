"""Several processes tune as one does with the same global batch: DDP, DeepSpeed, FSDP; on the CPU.

Float32; the tolerance is what other orders of adding make after four steps at rate 1e-3.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_tuning import STEPS, flags, run_script, write_inputs

from egogen.atomic import read_json
from llava.train.train import main

DDP, ZERO, FSDP = (
    pytest.mark.slow(f"stage 1 on two processes, {name}") for name in ("DDP", "ZeRO", "FSDP")
)
TOLERANCE = {"atol": 2e-6, "rtol": 1e-5}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(paths, tmp_path_factory):
    """One process, batches of four; no checkpointing, which must not matter."""
    output = tmp_path_factory.mktemp("alone")
    named = [str(part) for name, path in paths.items() for part in (f"--{name}", path)]
    published = ["--warmup_ratio", "0.03", "--lr_scheduler_type", "cosine", "--use_cpu", "True"]
    main([*named, "--output_dir", str(output), *published, *flags()])
    return load_file(output / "model.safetensors")


def tuned(paths, output, engine, *more):
    done = run_script(paths, output, engine, 2, *flags(per_device_train_batch_size=2), *more)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(output / "model.safetensors")


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **TOLERANCE, msg=name)


@pytest.mark.parametrize(
    "engine",
    [
        "zero3_offload",
        pytest.param("ddp", marks=DDP),
        pytest.param("zero2", marks=ZERO),
        pytest.param("zero3", marks=ZERO),
        pytest.param("fsdp", marks=FSDP),
    ],
)
def test_two_processes_tune_as_one(engine, paths, alone, tmp_path):
    assert_same(tuned(paths, tmp_path / "out", engine), alone)
    assert read_json(tmp_path / "out" / "finished.json")["steps"] == STEPS


@DDP
def test_accumulation_tunes_as_a_large_batch(paths, alone, tmp_path):
    found = tuned(paths, tmp_path / "out", "ddp", "--per_device_train_batch_size", "1")
    assert_same(found, alone)


@pytest.mark.parametrize(
    "engine", [pytest.param("zero3_offload", marks=ZERO), pytest.param("fsdp", marks=FSDP)]
)
def test_stopped_run_goes_on(engine, paths, alone, tmp_path):
    """The last checkpoint is half-written and the result is missing: as after a kill."""
    output = tmp_path / "out"
    tuned(paths, output, engine)
    for path in (output / "finished.json", output / f"checkpoint-{STEPS}" / "whole.json"):
        path.unlink()
    (output / "model.safetensors").unlink()
    assert_same(tuned(paths, output, engine), alone)
    other = "zero2" if engine == "zero3_offload" else "ddp"
    (output / "finished.json").unlink()
    done = run_script(paths, output, other, 2, *flags(per_device_train_batch_size=2))
    assert done.returncode != 0
    assert f"written by {engine.removesuffix('_offload')} on 2 processes" in done.stderr


@ZERO
def test_half_precision(paths, alone, tmp_path):
    """ZeRO-3 in bf16 keeps float32 copies: its result, saved in bf16, is near the float32 one."""
    found = tuned(paths, tmp_path / "out", "zero3_offload", "--bf16", "True")
    for name, value in found.items():
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value.float(), alone[name], atol=6e-3, rtol=1e-2, msg=name)


@ZERO
def test_adapters_under_zero_3(paths, tmp_path):
    adapters = ["--lora_enable", "True", "--lora_r", "4", "--lora_alpha", "8"]
    adapters += ["--lora_dropout", "0"]
    two = tuned(paths, tmp_path / "two", "zero3_offload", *adapters)
    done = run_script(paths, tmp_path / "one", "ddp", 1, *flags(), *adapters)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(two, load_file(tmp_path / "one" / "model.safetensors"))
    shutil.rmtree(tmp_path)

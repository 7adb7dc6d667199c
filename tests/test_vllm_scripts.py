"""The shell entries of tuning: which command they start, and what they say about wrong paths."""

import os
import subprocess
import sys

import pytest
from small_tuning import ROOT

from llava.train.arguments import AS_RELEASED, parse

# Stands in for the interpreter: a machine with eight GPUs, and a command line that is printed.
FAKE = f"""#!/usr/bin/env bash
if [[ $2 == egogen.settings ]]; then exec {sys.executable} "$@"; fi
if [[ $1 == -c ]]; then echo 8; exit 0; fi
printf '%s\\n' "$@"
"""


@pytest.fixture
def paths(tmp_path):
    for name in ("model", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "data.json").write_text("[]")
    python = tmp_path / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    return tmp_path


def start(script, *arguments, **environment):
    command = ["bash", str(ROOT / "vllm" / "scripts" / script), *map(str, arguments)]
    kept = os.environ.items()  # tests before this one may have put the settings there
    plain = {k: v for k, v in kept if k not in ("MODEL", "DATA") and not k.startswith("LEGO_")}
    return subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True)


def four(paths):
    return [paths / name for name in ("model", "data.json", "images", "out")]


@pytest.mark.parametrize("dataset, save_steps", [("ego4d", 150), ("epickitchen", 140)])
def test_published_hyperparameters(paths, dataset, save_steps, monkeypatch):
    """The values that the golden README lists, on the eight GPUs of the published runs."""
    done = start(f"finetune_{dataset}.sh", *four(paths), PYTHON=str(paths / "python"))
    command = done.stdout.splitlines()
    entry = command.index("llava.train.train")
    assert command[:entry] == (
        ["-m", "torch.distributed.run", "--nproc_per_node", "8", "--standalone", "-m"]
    )
    given = command[entry + 1 :]
    engine = given[given.index("--deepspeed") + 1]
    assert engine == str(ROOT / "vllm" / "scripts" / "zero3_offload.json")
    monkeypatch.setenv("WORLD_SIZE", "8")
    seen = {}
    monkeypatch.setattr("llava.train.arguments.start_deepspeed", seen.setdefault)
    monkeypatch.setattr("llava.train.arguments.TrainingArguments.__post_init__", keep)
    tuning = parse(given).tuning
    expected = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-5,
        "weight_decay": 0,
        "warmup_steps": 0.03,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "bf16": True,
        "gradient_checkpointing": True,
        "model_max_length": 2048,
        "seed": 42,
        "save_steps": save_steps,
        "kept": 4,
    }
    assert {name: getattr(tuning, name) for name in expected} == expected
    zero = tuning.deepspeed["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "cpu"
    assert tuning.deepspeed["optimizer"]["type"] == "AdamW" and "scheduler" not in tuning.deepspeed


def keep(self):
    """In place of transformers' own part, which would look for the GPUs."""
    self._n_gpu = 1


@pytest.mark.parametrize("script", ["finetune_ego4d.sh", "finetune_epickitchen.sh"])
def test_all_missing_paths_are_told_at_once(script, paths):
    done = start(script, paths / "none", "--output_dir", "x", LEGO_DATASET=str(paths / "nowhere"))
    assert done.returncode == 2
    images = f"IMAGES={paths / 'nowhere'}/EgoGen/"
    for word in (f"MODEL={paths / 'none'}: no such folder", "DATA (--data_path) is not", images):
        assert word in done.stderr
    assert "OUTPUT" not in done.stderr.partition("usage")[0]


def test_paths_by_every_way(paths):
    model, data, images, output = four(paths)
    done = start(
        "finetune_ego4d.sh",
        "--image_folder",
        images,
        f"--output_dir={output}",
        "--lora_enable",
        "True",
        MODEL=str(model),
        DATA=str(data),
        PYTHON=str(paths / "python"),
        ENGINE="ddp",
        GPUS="1",
    )
    command = done.stdout.splitlines()
    assert command[:2] == ["-m", "llava.train.train"] and command[-2:] == ["--lora_enable", "True"]
    for flag, path in (("model_name_or_path", model), ("data_path", data), ("output_dir", output)):
        assert command[command.index(f"--{flag}") + 1] == str(path)


@pytest.mark.parametrize("curated", ["gpt_curated", "curation_from_gpt"])
def test_paths_by_the_settings(paths, curated):
    """One file says where everything is; the script needs no word."""
    (paths / "settings.env").write_text(
        "".join(f"LEGO_{name}={paths}/{name}\n" for name in ("DATASET", "WEIGHTS", "OUTPUT"))
        + f"LEGO_FEATURES={paths}\n"
    )
    images = paths / "DATASET/EgoGen/ego4d.fho/train"
    for folder in (images, paths / "WEIGHTS/pretrained/llava_pretrained"):
        folder.mkdir(parents=True)
    data = paths / f"DATASET/{curated}/ego4d_for_tuning_forecasting.json"
    data.parent.mkdir()
    (data.parent / "epickitchen_for_tuning_forecasting.json").write_text("[]")
    data.write_text("[]")
    words = dict(PYTHON=str(paths / "python"), LEGO_SETTINGS=str(paths / "settings.env"))
    command = start("finetune_ego4d.sh", **words).stdout.splitlines()
    expected = {
        "model_name_or_path": paths / "WEIGHTS/pretrained/llava_pretrained",
        "data_path": data,
        "image_folder": images,
        "output_dir": paths / "OUTPUT/vllm/out/ego4d/llava-llama-2-13b-chat-forecasting-finetune",
    }
    for flag, path in expected.items():
        assert command[command.index(f"--{flag}") + 1] == str(path)


def test_unknown_engine(paths):
    done = start("finetune_mini.sh", *four(paths), PYTHON=str(paths / "python"), ENGINE="zero9")
    assert done.returncode == 2 and "ENGINE=zero9: expected zero3_offload" in done.stderr


def test_switches_as_released(tmp_path):
    given = [f"--{name}={tmp_path}" for name in ("model_name_or_path", "data_path", "image_folder")]
    given += ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    flags = parse([*given, "--as_released", "True", "--cut_rule", "expanded"])
    assert flags.tuning.as_released and flags.tuning.lr_rule == "released"
    assert not flags.tuning.average_tokens_across_devices
    assert flags.data.image_aspect_ratio == "square" and flags.data.cut_rule == "expanded"
    default = parse(given)
    for name, value in AS_RELEASED.items():
        group = default.tuning if hasattr(default.tuning, name) else default.data
        assert str(getattr(group, name)) != value, name


def test_help_shows_paths_and_flags(paths):
    done = start("finetune_ego4d.sh", "--help", PYTHON=str(paths / "python"))
    assert done.returncode == 0 and "IMAGES  --image_folder" in done.stdout
    assert done.stdout.splitlines()[-3:] == ["-m", "llava.train.train", "--help"]

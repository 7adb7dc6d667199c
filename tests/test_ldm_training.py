"""Training of stage 2: exact resume, the cache, the average, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from small_training import CONFIG, write_run

from egogen import EgoGenError
from ldm.cache import main as cache_main
from ldm.checkpoint import read_weights
from ldm.config import TrainConfig, load_config
from ldm.data import locate_entries
from ldm.order import EpochBatches
from ldm.saving import Checkpoints
from ldm.train import train
from ldm.training import LegoTraining
from main import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_overrides(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("training"))


def train_run(overrides, logs, name, *more):
    main(
        ["--name", name, "--base", str(CONFIG), "--logdir", str(logs), "--train", *overrides, *more]
    )
    return logs / name


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        (r["step"], kind): r[kind] for r in records for kind in ("loss", "val_loss") if kind in r
    }


@pytest.fixture(scope="module")
def undisturbed(run_overrides, tmp_path_factory):
    return train_run(run_overrides, tmp_path_factory.mktemp("undisturbed"), "a")


class Killed(BaseException):
    pass


def kill(monkeypatch, overrides, logs, after, *more):
    """Begin run "a" and end it, without any clean-up, after the checkpoint of step `after`."""
    save = Checkpoints.save

    def save_and_die(self, trainer):
        save(self, trainer)
        if trainer.global_step == after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            train_run(overrides, logs, "a", *more)


EPOCHS = "lightning.trainer.max_steps=-1", "lightning.trainer.max_epochs=3"  # as long: 6 steps


@pytest.mark.parametrize(
    "kill_after, length",
    [(1, ()), (2, ()), (3, ()), (4, ()), (2, EPOCHS), (3, EPOCHS), (4, EPOCHS)],
)
def test_a_killed_run_goes_on_exactly(
    run_overrides, undisturbed, tmp_path, monkeypatch, kill_after, length
):
    """Two batches an epoch: kills fall inside epochs, at their ends, and after a validation."""
    kill(monkeypatch, run_overrides, tmp_path, kill_after, *length)
    same_run(train_run(run_overrides, tmp_path, "a", *length), undisturbed)


def same_run(folder, undisturbed):
    """The same losses and, bit for bit, the same weights and averages."""
    assert losses(folder) == losses(undisturbed)
    ours, theirs = (read_weights(f / "checkpoints" / "last.ckpt") for f in (folder, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_end"])
def test_a_kill_around_a_validation(run_overrides, undisturbed, tmp_path, monkeypatch, hook):
    """A kill between the last step of an epoch and its validation's end loses no validation."""

    def die(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LegoTraining, hook, die)
        with pytest.raises(Killed):
            train_run(run_overrides, tmp_path, "a")
    same_run(train_run(run_overrides, tmp_path, "a"), undisturbed)


def test_accumulation_and_a_longer_run(run_overrides, tmp_path):
    """Gradients are accumulated, and a finished run that is asked for more steps goes on."""
    more, asked = "lightning.trainer.accumulate_grad_batches=2", "lightning.trainer.max_steps="
    train_run(run_overrides, tmp_path, "a", more, f"{asked}2")
    whole = losses(train_run(run_overrides, tmp_path, "b", more, f"{asked}4"))
    assert losses(train_run(run_overrides, tmp_path, "a", more, f"{asked}4")) == whole
    plain = losses(train_run(run_overrides, tmp_path, "c", f"{asked}4"))
    assert plain[4, "loss"] != whole[4, "loss"]


def test_means_in_the_log_outlive_a_kill(run_overrides, tmp_path, monkeypatch):
    """A line of the log is the mean over `log_every` steps, also over a kill between them."""
    more = "lightning.log_every=4", "lightning.trainer.max_steps=4"
    whole = losses(train_run(run_overrides, tmp_path, "whole", *more))
    kill(monkeypatch, run_overrides, tmp_path, 3, *more)
    assert losses(train_run(run_overrides, tmp_path, "a", *more)) == whole


def test_loader_workers_change_nothing(run_overrides, undisturbed, tmp_path, monkeypatch):
    """Workers fetch ahead, also across the end of an epoch and after a resume inside one."""
    more = ("data.params.num_workers=1",)
    kill(monkeypatch, run_overrides, tmp_path, 3, *more)
    assert losses(train_run(run_overrides, tmp_path, "a", *more)) == losses(undisturbed)


def test_a_finished_run_is_left_alone(run_overrides, undisturbed, capsys):
    last = undisturbed / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns
    train_run(run_overrides, undisturbed.parent, "a")
    assert "nothing to do" in capsys.readouterr().out and last.stat().st_mtime_ns == before
    assert (undisturbed / "samples" / "step_000006.png").is_file()


def test_the_cache_gives_the_same_loss(run_overrides, undisturbed, tmp_path, capsys):
    cache = tmp_path / "cache"
    cache_main(["--config", str(CONFIG), "--out", str(cache), *run_overrides])
    cached = train_run(run_overrides, tmp_path, "cached", f"data.params.cache_path={cache}")
    for place, loss in losses(undisturbed).items():
        assert losses(cached)[place] == pytest.approx(loss, rel=1e-4), place
    weights = read_weights(cached / "checkpoints" / "last.ckpt")
    assert weights.keys() == read_weights(undisturbed / "checkpoints" / "last.ckpt").keys()
    shard = next((cache / "train").glob("shard_*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(EgoGenError, match="missing or cut short; run python -m ldm.cache again"):
        train_run(run_overrides, tmp_path, "broken", f"data.params.cache_path={cache}")
    cache_main(["--config", str(CONFIG), "--out", str(cache), *run_overrides])
    other = "data.params.train.params.text_prompt_key=action"
    with pytest.raises(EgoGenError, match="made with content"):
        train_run([*run_overrides, other], tmp_path, "o", f"data.params.cache_path={cache}")


def test_conditioner_and_average(run_overrides, undisturbed, tmp_path):
    """Projections and self-attention are trained and averaged, unless the released way is asked."""
    start = train_run(run_overrides, tmp_path, "start", "lightning.trainer.max_steps=1")
    first, last = (read_weights(f / "checkpoints" / "last.ckpt") for f in (start, undisturbed))
    name = "conditioner.projection_txt.weight"
    assert not torch.equal(first[f"model.{name}"], last[f"model.{name}"])
    assert not torch.equal(last[f"ema.{name}"], last[f"model.{name}"])
    frozen = "model.params.conditioner.trained=false"
    one = train_run(run_overrides, tmp_path, "one", frozen, "lightning.trainer.max_steps=1")
    more = train_run(run_overrides, tmp_path, "more", frozen)
    first, last = (read_weights(f / "checkpoints" / "last.ckpt") for f in (one, more))
    assert torch.equal(first[f"model.{name}"], last[f"model.{name}"])
    assert f"ema.{name}" not in last
    assert any(n.startswith("ema.unet.") for n in last)


@pytest.mark.parametrize("variant", ["none", "image", "text"])
def test_conditioning_variants_train(run_overrides, tmp_path, variant):
    more = f"model.params.conditioner.variant={variant}", "lightning.trainer.max_steps=1"
    assert losses(train_run(run_overrides, tmp_path, variant, *more))


def test_two_processes(run_overrides, tmp_path):
    """DDP over two processes with half the batch each gives the losses of one process."""
    more = ["model.params.conditioner.dropout=0", "lightning.trainer.max_steps=3"]
    alone = losses(train_run(run_overrides, tmp_path, "one", *more))
    command = [sys.executable, str(ROOT / "main.py"), "--name", "ddp", "--base", str(CONFIG)]
    command += ["--logdir", str(tmp_path), "--train", *run_overrides, *more]
    command += ["data.params.batch_size=1", "lightning.trainer.devices=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for place, loss in losses(tmp_path / "ddp").items():
        assert loss == pytest.approx(alone[place], rel=1e-4), place


def test_ranks_share_the_work():
    """Two ranks with half the batch see what one rank sees, in the same order of batches."""
    whole = list(EpochBatches(10, 4, seed=1))
    halves = [list(EpochBatches(10, 2, seed=1, rank=rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert len(whole) == 2 and len({index for batch in whole for _, index in batch}) == 8
    other = EpochBatches(10, 4, seed=1)
    other.set_epoch(1)
    assert [[i for _, i in batch] for batch in other] != [[i for _, i in batch] for batch in whole]
    assert len(list(EpochBatches(3, 4, seed=1))) == 1  # little data is repeated to fill a batch


def test_bad_input(run_overrides, undisturbed, tmp_path):
    cases = {
        "did you mean 'model.base_learning_rate'": ["model.base_learning_rat=1"],
        "no such file": ["data.params.train.params.edit_path=/none.json"],
        "llava_text='/none': no such folder": [
            "data.params.train.params.additional_cond_path.llava_text=/none"
        ],
        "none.ckpt: no such checkpoint": ["model.params.ckpt_path=/none.ckpt"],
        "expected \\(n, 9\\)|expected \\(256, 9\\)": ["model.params.conditioner.feature_dim=9"],
        "lightning.trainer": ["lightning.trainer.max_step=3"],
    }
    for expected, overrides in cases.items():
        with pytest.raises(EgoGenError, match=expected):
            train_run(run_overrides, tmp_path, "bad", *overrides)
        assert not (tmp_path / "bad" / "checkpoints").exists()
    with pytest.raises(EgoGenError, match="begun with other values of model.base_learning_rate"):
        train_run(run_overrides, undisturbed.parent, "a", "model.base_learning_rate=1")
    with pytest.raises(EgoGenError, match="this machine has"):
        train_run(run_overrides, tmp_path, "gpu", "--gpus", "97")


def test_a_checkpoint_of_another_kind(run_overrides, tmp_path):
    path = tmp_path / "a" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"model.language_model.norm.weight": torch.ones(1)}}, path)
    with pytest.raises(EgoGenError, match="not a checkpoint of stage 2"):
        train(load_config(TrainConfig, [str(CONFIG)], run_overrides), tmp_path / "a")


def test_mini_configs_agree():
    """The model's part stands in both files, as in the released configs."""
    models = [
        OmegaConf.load(CONFIG.with_name(name)).model.params
        for name in ("train_mini.yaml", "generate_mini.yaml")
    ]
    train_only = {"ckpt_path", "load_ema", "ema_decay", "scheduler_config"}
    kept = [{k: v for k, v in model.items() if k not in train_only} for model in models]
    assert kept[0] == kept[1]


def test_scale_up_takes_both_training_sets(run_overrides, tmp_path):
    """Lists of paths: the entries of the sets one after the other, each with its own folders."""
    second = tmp_path / "second"
    other = dict(word.split("=", 1) for word in write_run(second))
    lists = []
    for word in run_overrides:
        key, _, value = word.partition("=")
        if key.startswith("data.params.train.params.") and "/" in value:
            lists.append(f"{key}=[{value},{other[key]}]")
    config = load_config(TrainConfig, [str(CONFIG)], [*run_overrides, *lists])
    located = locate_entries(config.data.params.train.params)
    assert len(located) == 8 and located[0].frames != located[4].frames
    assert located[4].text_root == str(second / "text" / "train")
    config.data.params.train.params.data_path = [*config.data.params.train.params.data_path, "x"]
    with pytest.raises(EgoGenError, match="expected the same number each"):
        locate_entries(config.data.params.train.params)

"""Training of stage 2: exact resume, the cache, the average, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from small_training import CONFIG, Killed, kill, losses, train_run, write_run
from torch.utils.data import default_collate

from egogen import EgoGenError
from ldm.checkpoints.load import read_weights
from ldm.config import TrainConfig, load_config
from ldm.model import LegoModel
from ldm.split import locate_entries, open_split, open_training
from ldm.training.module import LegoTraining
from ldm.training.order import EpochBatches
from ldm.training.run import build_data, train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_overrides(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def undisturbed(run_overrides, tmp_path_factory):
    return train_run(run_overrides, tmp_path_factory.mktemp("undisturbed"), "a")


EPOCHS = "lightning.trainer.max_steps=-1", "lightning.trainer.max_epochs=3"  # as long: 6 steps
KILLED = pytest.mark.slow("stage 2 killed at every step")


@pytest.mark.parametrize(
    "kill_after, length",
    [
        *[pytest.param(step, (), marks=KILLED) for step in (1, 3)],
        *[pytest.param(step, EPOCHS, marks=KILLED) for step in (2, 3)],
        (2, ()),
        (4, ()),
        (4, EPOCHS),
    ],
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


@pytest.mark.parametrize(
    "hook",
    ["on_validation_start", pytest.param("on_validation_end", marks=KILLED)],
)
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


@pytest.mark.slow("stage 2, loader workers")
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


@pytest.mark.parametrize("variant", ["none", "image", "text", "both"])
def test_no_variant_leaves_a_parameter_without_gradient(run_overrides, variant):
    """What DDP needs; for both sources of the prompt."""
    more = f"model.params.conditioner.variant={variant}"
    config = load_config(TrainConfig, [str(CONFIG)], [*run_overrides, more])
    model = LegoModel(config.model)
    module = LegoTraining(model, config.optimizer, config.lightning, seed=0)
    for prompt in ("action", "llava_forecast_finetune"):
        config.data.train.text_prompt_key = prompt
        pairs = build_data(open_training(config), model, 0, None, True)[0]
        batch = default_collate([pairs[0, index] for index in range(2)])
        module.losses(batch).mean().backward()
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
        module.zero_grad()


def spawn_ddp(folder, *overrides):
    """Two processes, half the batch each."""
    command = [sys.executable, str(ROOT / "main.py"), "--name", "ddp", "--base", str(CONFIG)]
    command += ["--logdir", str(folder), "--train", *overrides]
    command += ["data.params.batch_size=1", "lightning.trainer.devices=2"]
    # A stray NODE_RANK, as some tools leave behind, would count the ranks from the wrong one.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NODE_RANK": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return folder / "ddp"


def test_two_processes(run_overrides, tmp_path):
    """DDP over two processes with half the batch each: losses and weights of one process."""
    more = ["model.params.conditioner.dropout=0", "lightning.trainer.max_steps=3"]
    more += ["model.base_learning_rate=1e-3"]
    alone = train_run(run_overrides, tmp_path, "one", *more)
    both = spawn_ddp(tmp_path, *run_overrides, *more)
    for place, loss in losses(both).items():
        assert loss == pytest.approx(losses(alone)[place], rel=1e-4), place
    ours, theirs = (read_weights(f / "checkpoints" / "last.ckpt") for f in (both, alone))
    assert ours.keys() == theirs.keys()
    # A gradient of rounding noise alone has an unstable sign, and Adam's steps are of its sign:
    # nearly all weights agree closely, and none is further away than three steps can take it.
    moved = [name for name in ours if name.startswith("model.unet.")]
    gaps = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in moved])
    assert gaps.max() < 2.1 * 3e-3 and (gaps < 1e-5).float().mean() > 0.99


@pytest.mark.slow("stage 2 on two processes, variants")
@pytest.mark.parametrize(
    "variant, prompt",
    [
        ("none", "action"),
        ("image", "llava_forecast_finetune"),
        ("text", "action"),
        ("both", "action"),
    ],
)
def test_variants_under_ddp(run_overrides, tmp_path, variant, prompt):
    """DDP stops where a parameter gets no gradient."""
    more = [f"model.params.conditioner.variant={variant}", "lightning.trainer.max_steps=2"]
    more += [
        f"data.params.{part}.params.text_prompt_key={prompt}" for part in ("train", "validation")
    ]
    assert losses(spawn_ddp(tmp_path, *run_overrides, *more))


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
        "edit_path=/none.json.*llava_text=/none, model.params.ckpt_path=/none.ckpt": [
            "data.params.train.params.edit_path=/none.json",
            "data.params.train.params.additional_cond_path.llava_text=/none",
            "model.params.ckpt_path=/none.ckpt",
        ],
        "expected \\(n, 9\\)|expected \\(256, 9\\)": ["model.params.conditioner.feature_dim=9"],
        "did you mean 'lightning.trainer.max_steps'": ["lightning.trainer.max_step=3"],
        "pip install wandb": ["lightning.logger=wandb"],
        "expected srun with 1 tasks a node": ["lightning.trainer.num_nodes=2"],
        "devices": ["lightning.trainer.devices=none"],
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
    features = config.model.conditioner.features
    located = open_split(config.data.train, features).items
    assert len(located) == 8 and located[0].frames != located[4].frames
    assert located[4].stores["text"] == str(second / "text" / "train")
    config.data.train.data_path = [*config.data.train.data_path, "x"]
    with pytest.raises(EgoGenError, match="expected the same number each"):
        locate_entries(config.data.train, features)

"""Training of stage 2: signals, clusters, room on the disk, precision, and the released way."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from PIL import Image
from small_training import CONFIG, losses, train_run, write_run
from torch._utils import ExceptionWrapper

from egogen import EgoGenError
from egogen.jobs import StoppedBySignal, requeue
from ldm.checkpoints.load import read_weights
from ldm.config import TrainConfig, load_config
from ldm.model import LegoModel
from ldm.split import open_training
from ldm.training.callbacks import TrainingLog
from ldm.training.cluster import cluster_environment
from ldm.training.module import LegoTraining
from ldm.training.order import ValidationBatches
from ldm.training.run import build_data, build_logger, micro_batches, workers_errors_in_one_line
from ldm.training.saving import Checkpoints, check_space, checkpoint_bytes


@pytest.fixture(scope="module")
def run_overrides(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("options"))


@pytest.fixture(scope="module")
def undisturbed(run_overrides, tmp_path_factory):
    return train_run(run_overrides, tmp_path_factory.mktemp("undisturbed"), "a")


def load(overrides, *more):
    config = load_config(TrainConfig, [str(CONFIG)], [*overrides, *more])
    return config, LegoModel(config.model)


@pytest.mark.parametrize(
    "number",
    [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow("stage 2, SIGTERM"))],
)
def test_a_signal_ends_a_run_with_a_checkpoint(
    run_overrides, undisturbed, tmp_path, monkeypatch, number
):
    """After the step under way; under Slurm the job is queued again; the next run goes on."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tools}/called\n')
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    log = TrainingLog.on_train_batch_end

    def send(self, trainer, *rest):
        log(self, trainer, *rest)
        if trainer.global_step == 3:
            os.kill(os.getpid(), number)

    more = ["lightning.checkpoint_every=100"]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "on_train_batch_end", send)
        with pytest.raises(StoppedBySignal, match="step 3: stopped by a signal"):
            train_run(run_overrides, tmp_path, "a", *more)
    assert signal.getsignal(number) == before
    called = (tools / "called").read_text() if (tools / "called").exists() else ""
    assert called == ("requeue 77\n" if number == signal.SIGUSR1 else "")
    assert not (tmp_path / "a" / "finished.json").exists()
    assert losses(train_run(run_overrides, tmp_path, "a", *more)) == losses(undisturbed)


def test_requeue_of_an_array_job_and_without_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert requeue() == ""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert "job 5_2 was not requeued" in requeue()


def test_where_processes_come_from(monkeypatch):
    for name in [n for n in os.environ if n.startswith("SLURM_")] + ["LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NODE_RANK", "3")  # left behind by another tool
    alone = cluster_environment(devices=8, nodes=1)
    assert isinstance(alone, LightningEnvironment) and alone.node_rank() == 0
    with pytest.raises(EgoGenError, match="num_nodes=2: expected srun with 8 tasks a node"):
        cluster_environment(devices=8, nodes=2)
    monkeypatch.setenv("NODE_RANK", "1")  # meant
    assert cluster_environment(devices=8, nodes=2).node_rank() == 1
    slurm = {"NTASKS": 16, "NTASKS_PER_NODE": 8, "PROCID": 9, "LOCALID": 1, "NODEID": 1}
    for name, value in (slurm | {"NNODES": 2, "JOB_ID": 7, "JOB_NAME": "lego"}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    found = cluster_environment(devices=8, nodes=2)
    assert isinstance(found, SLURMEnvironment) and not found.auto_requeue
    assert (found.world_size(), found.global_rank(), found.node_rank()) == (16, 9, 1)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # a shell of salloc
    monkeypatch.delenv("NODE_RANK")
    assert isinstance(cluster_environment(devices=8, nodes=1), LightningEnvironment)
    monkeypatch.setenv("SLURM_JOB_NAME", "lego")
    monkeypatch.setenv("SLURM_NTASKS", "1")  # a job whose one task is the command itself
    assert isinstance(cluster_environment(devices=8, nodes=1), LightningEnvironment)


def test_room_on_the_disk(run_overrides, tmp_path, monkeypatch, undisturbed):
    """Refused before training begins; an estimate close to what is written."""
    config, model = load(run_overrides)
    estimate = checkpoint_bytes(LegoTraining(model, config.optimizer, config.lightning, seed=0))
    written = (undisturbed / "checkpoints" / "last.ckpt").stat().st_size
    assert 0.8 * written < estimate < written
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * 10**9))
    check_space(tmp_path / "none", 2, 10**9)
    with pytest.raises(EgoGenError, match="No space left on device for 3 checkpoints of 1 GB"):
        check_space(tmp_path / "none", 3, 10**9)


def test_only_the_newest_copies_are_kept(tmp_path):
    trainer = SimpleNamespace(is_global_zero=True, global_step=0)
    trainer.lightning_module = SimpleNamespace(write_adapters=lambda folder: None)
    trainer.save_checkpoint = lambda path: path.write_text(str(trainer.global_step))
    trainer.strategy = SimpleNamespace(reduce_boolean_decision=lambda asked, all: asked)
    checkpoints = Checkpoints(tmp_path, every=1, keep_every=2, keep_at_most=2)
    for trainer.global_step in range(1, 10):
        checkpoints.end_step(trainer)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"last.ckpt": "9", "step_00000006.ckpt": "6", "step_00000008.ckpt": "8"}


def test_as_released(run_overrides, tmp_path):
    """Conditioner neither trained nor averaged, average per micro-batch, validation at random;
    one key says so, and another can still say otherwise."""
    words = ["as_released=true", "lightning.trainer.accumulate_grad_batches=2"]
    words += ["lightning.trainer.max_steps=2", "lightning.trainer.check_val_every_n_epoch=1"]
    folder = train_run(run_overrides, tmp_path, "a", *words)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["ema_updates"] == 4  # two micro-batches a step
    assert not any(name.startswith("ema.conditioner.") for name in last["state_dict"])
    start = train_run(run_overrides, tmp_path, "b", *words[:2], "lightning.trainer.max_steps=1")
    first = read_weights(start / "checkpoints" / "last.ckpt")
    same = {n: torch.equal(first[n], last["state_dict"][n]) for n in first}
    assert all(same[n] for n in same if n.startswith("model.conditioner."))
    assert not all(same[n] for n in same if n.startswith("model.unet."))
    config, model = load(run_overrides, "as_released=true")
    validation = build_data(
        open_training(config), model, 0, None, config.lightning.validation_draws == "fixed"
    )[1]
    one, other = validation[0, 0], validation[1, 0]
    assert not torch.equal(one["noise"], other["noise"]) and one["draw"] != other["draw"]
    mended = load(run_overrides, "as_released=true", "model.params.conditioner.trained=true")[0]
    assert mended.model.conditioner.trained
    assert mended.model.ema_every_micro_batch


def test_validation_is_the_same_each_time_by_default(run_overrides):
    config, model = load(run_overrides)
    validation = build_data(
        open_training(config), model, 0, None, config.lightning.validation_draws == "fixed"
    )[1]
    items = [validation[epoch, 1] for epoch in (0, 5)]
    assert items[0]["t"] == items[1]["t"] and torch.equal(items[0]["noise"], items[1]["noise"])
    assert items[0]["draw"] == 1.0  # nothing is dropped
    batches = [list(ValidationBatches(7, 2, lambda: 3, rank, 2)) for rank in (0, 1)]
    assert batches == [[[(3, 0), (3, 2)], [(3, 4)]], [[(3, 1), (3, 3)], [(3, 5)]]]


@pytest.mark.parametrize("on", [True, False])
def test_checkpointing_is_off_when_it_is_off(run_overrides, on):
    config, model = load(run_overrides, f"model.params.unet_config.params.use_checkpoint={on}")
    module = LegoTraining(model, config.optimizer, config.lightning, seed=0)
    assert module.model.unet.is_gradient_checkpointing is on


def test_precision_and_memory_format(run_overrides, undisturbed, tmp_path):
    """bf16 autocast on channels-last weights: nearly the losses of float32."""
    more = ["lightning.trainer.precision=bf16-mixed", "lightning.channels_last=true"]
    found = losses(train_run(run_overrides, tmp_path, "a", *more, "lightning.trainer.max_steps=2"))
    for step in (1, 2):
        assert found[step, "loss"] == pytest.approx(losses(undisturbed)[step, "loss"], rel=0.02)
        assert found[step, "loss"] != losses(undisturbed)[step, "loss"]
    for clip, fused in ((1.0, False), (0, True)):  # Lightning cannot clip for a fused one
        words = (
            "lightning.trainer.precision=16-mixed",
            f"lightning.trainer.gradient_clip_val={clip}",
        )
        config, model = load(run_overrides, *words)
        optimizer = LegoTraining(
            model, config.optimizer, config.lightning, seed=0
        ).configure_optimizers()["optimizer"]
        assert optimizer.defaults["fused"] is fused


@pytest.mark.slow("stage 2, compiled training")
@pytest.mark.timeout(3600)
def test_compile(run_overrides, undisturbed, tmp_path):
    more = ["lightning.compile=true", "lightning.trainer.max_steps=2"]
    found = losses(train_run(run_overrides, tmp_path, "a", *more))
    for step in (1, 2):
        assert found[step, "loss"] == pytest.approx(losses(undisturbed)[step, "loss"], rel=1e-3)


def test_length_in_micro_batches(run_overrides):
    """100 pairs, batch 2, two processes, accumulate 4: 25 micro-batches and 7 steps an epoch."""
    accumulate = "lightning.trainer.accumulate_grad_batches=4"
    for length, expected in (
        (["lightning.trainer.max_steps=-1", "lightning.trainer.max_epochs=3"], 75),
        (["lightning.trainer.max_steps=9", "lightning.trainer.max_epochs=-1"], 25 + 8),
        (["lightning.trainer.max_steps=99", "lightning.trainer.max_epochs=3"], 75),
    ):
        config = load(run_overrides, accumulate, *length)[0]
        assert (
            micro_batches(config.lightning.trainer, config.data.batch_size, samples=100, world=2)
            == expected
        )


def test_an_error_of_a_worker_is_one_line():
    try:
        raise EgoGenError("frame.npy: expected (256, 9)")
    except EgoGenError:
        carried = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(EgoGenError) as caught, workers_errors_in_one_line():
        carried.reraise()
    assert str(caught.value) == "frame.npy: expected (256, 9)"


def test_loggers(run_overrides, tmp_path):
    """TensorBoard by default."""
    config = load_config(TrainConfig, [])
    logger = build_logger(config.lightning.logger, tmp_path / "a")
    assert type(logger).__name__ == "TensorBoardLogger"
    assert logger.log_dir.rstrip("/") == str(tmp_path / "a")


def test_a_sample_image_that_cannot_be_made_ends_nothing(run_overrides, tmp_path, capsys):
    place = "data.params.validation.params.edit_path"
    before = next(text for text in run_overrides if text.startswith(place)).partition("=")[2]
    content = json.loads(Path(before).read_text())
    content["ego4d-val-clip0"]["0"]["llava_forecast_finetune"] = ""
    (tmp_path / "val.json").write_text(json.dumps(content))
    more = [f"{place}={tmp_path}/val.json", "lightning.trainer.max_steps=1"]
    more.append("lightning.callbacks.image_logger.params.max_images=2")
    folder = train_run(run_overrides, tmp_path, "a", *more)
    assert "no sample image: entry ego4d-val-clip0/0: llava_forecast" in capsys.readouterr().err
    sheet = Image.open(folder / "samples" / "step_000001.png")
    assert sheet.height == load(run_overrides)[0].inference.height  # one row, of the other entry

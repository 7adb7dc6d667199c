"""Tuning: what an optimizer step is made of, whatever the batches it comes in."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from small_tuning import ROOT, flags, write_inputs

from egogen.jobs import StoppedBySignal
from llava.train import trainer
from llava.train.saving import StopOnSignal, checkpoints, newest_complete
from llava.train.train import main
from llava.train.trainer import EpochOrder


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def gradients(paths, output, monkeypatch, **options):
    """Gradients of two optimizer steps of four samples each, unclipped."""
    seen: list[dict] = []

    class Noting(trainer.StepProgress):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            named = model.named_parameters()
            seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    named = [str(part) for name, path in paths.items() for part in (f"--{name}", path)]
    settings = flags(max_steps=2, save_steps=9, max_grad_norm=0, **options)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "StepProgress", Noting)
        main([*named, "--output_dir", str(output), "--use_cpu", "True", *settings])
    assert len(seen) == 2
    return seen


def test_gradients_do_not_depend_on_the_accumulation(paths, tmp_path, monkeypatch):
    """Answers of different length: each target counts alike, not each small batch."""
    whole = gradients(paths, tmp_path / "4", monkeypatch)
    for size in (1, 2):
        parts = gradients(
            paths, tmp_path / str(size), monkeypatch, per_device_train_batch_size=size
        )
        for step in range(2):
            assert parts[step].keys() == whole[step].keys()
            for name, value in whole[step].items():
                torch.testing.assert_close(
                    parts[step][name], value, atol=1e-6, rtol=1e-3, msg=f"{step} {name}"
                )


AGREE = """
import sys, torch
from llava.train.parallel import any_process, is_first
torch.distributed.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]),
                                     world_size=2)
first = sys.argv[2] == "0"
cpu = torch.device("cpu")
print(any_process(first, cpu), any_process(not first, cpu), any_process(False, cpu))
"""


def test_what_one_process_is_told_all_know(tmp_path):
    """Two real processes; a signal may reach any one of them."""
    command = [sys.executable, "-c", AGREE, f"file://{tmp_path}/meeting"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "vllm")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([*command, rank], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    said = [process.communicate(timeout=300)[0].split() for process in both]
    assert said == [["True", "True", "False"]] * 2


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_only_the_warning_of_slurm_queues_the_job_again(tmp_path, slurm_calls, number):
    stop = StopOnSignal()
    stop.raise_if_stopped(tmp_path, 3)  # nothing was asked
    stop.stopped, stop.received = True, number
    with pytest.raises(StoppedBySignal, match="step 3: stopped by a signal"):
        stop.raise_if_stopped(tmp_path, 3)
    assert slurm_calls() == ("requeue 77\n" if number == signal.SIGUSR1 else "")


def tuned(paths, output, *more, **options):
    named = [str(part) for name, path in paths.items() for part in (f"--{name}", path)]
    main([*named, "--output_dir", str(output), "--use_cpu", "True", *flags(**options), *more])
    return output


def test_the_newest_checkpoints_are_kept_and_continued_from(paths, tmp_path):
    output = tuned(paths, tmp_path / "out", max_steps=4, save_steps=1, save_total_limit=2)
    assert [path.name for path in checkpoints(output)] == ["checkpoint-3", "checkpoint-4"]
    assert newest_complete(output, "ddp", 1) == str(output / "checkpoint-4")
    (output / "checkpoint-4" / "whole.json").unlink()  # cut off while it was saved
    assert newest_complete(output, "ddp", 1) == str(output / "checkpoint-3")


def test_adapters_keep_what_tuning_changed(paths, tmp_path):
    more = ["--lora_enable", "True", "--lora_r", "4", "--image_aspect_ratio", "pad"]
    more += ["--version", "v1"]
    output = tuned(paths, tmp_path / "out", *more, max_steps=1, save_steps=9)
    config = json.loads((output / "config.json").read_text())
    assert config["image_aspect_ratio"] == "pad"
    assert config["conversation_template"] == "vicuna_v1"


def test_every_epoch_has_an_order_of_its_own():
    """A permutation, and its first samples again where the global batch asks for more."""
    order = EpochOrder(10, 4, seed=3)
    found = []
    for epoch in range(3):
        order.set_epoch(epoch)
        drawn = list(order)
        assert len(drawn) == len(order) == 12 and sorted(drawn[:10]) == list(range(10))
        assert drawn[10:] == drawn[:2]
        found.append(tuple(drawn))
    assert len(set(found)) == 3
    order.set_epoch(1)
    assert tuple(order) == found[1]
    assert list(EpochOrder(10, 4, seed=4)) != list(found[0])

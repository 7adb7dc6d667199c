"""Tuning: what an optimizer step is made of, whatever the batches it comes in."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from small_tuning import ROOT, flags, write_inputs

from egogen.jobs import StoppedBySignal
from llava.train import trainer
from llava.train.saving import StopOnSignal
from llava.train.train import main


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
def test_only_the_warning_of_slurm_queues_the_job_again(tmp_path, monkeypatch, number):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tools}/called\n')
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    stop = StopOnSignal()
    stop.raise_if_stopped(tmp_path, 3)  # nothing was asked
    stop.stopped, stop.received = True, number
    with pytest.raises(StoppedBySignal, match="step 3: stopped by a signal"):
        stop.raise_if_stopped(tmp_path, 3)
    called = (tools / "called").read_text() if (tools / "called").exists() else ""
    assert called == ("requeue 77\n" if number == signal.SIGUSR1 else "")

"""Tuning: what an optimizer step is made of, whatever the batches it comes in."""

import pytest
import torch
from small_tuning import flags, write_inputs

from llava.train import trainer
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

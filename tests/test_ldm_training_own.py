"""Training of stage 2: what an optimizer step is made of, whatever the batches it comes in."""

import pytest
import torch
from small_training import losses, train_run, write_run

from ldm.training.module import LegoTraining


@pytest.fixture(scope="module")
def run_overrides(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("own"))


def first_gradients(overrides, logs, monkeypatch, *more):
    """-> (gradients of the first optimizer step, EMA updates and losses of a run of two)."""
    seen: list[dict] = []

    def note(self, optimizer):
        named = self.model.named_parameters()
        seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    with monkeypatch.context() as patch:
        patch.setattr(LegoTraining, "on_before_optimizer_step", note)
        folder = train_run(overrides, logs, "a", "lightning.trainer.max_steps=2", *more)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(seen) == 2
    return seen[0], last["ema_updates"], losses(folder)


def test_gradients_do_not_depend_on_the_accumulation(run_overrides, tmp_path, monkeypatch):
    """Two batches of one, accumulated, against one of two: mean gradients, one update of the EMA a
    step. (AdamW hides a wrong factor: the weights alone would not show it.)
    """
    alone = ["model.params.conditioner.dropout=0", "lightning.log_every=1"]
    whole, updates, _ = first_gradients(run_overrides, tmp_path / "1", monkeypatch, *alone)
    more = ["data.params.batch_size=1", "lightning.trainer.accumulate_grad_batches=2"]
    parts, parts_updates, _ = first_gradients(
        run_overrides, tmp_path / "2", monkeypatch, *alone, *more
    )
    assert parts.keys() == whole.keys() and {name.split(".")[0] for name in whole} == {
        "unet",
        "conditioner",
    }
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-3, msg=name)
    assert updates == parts_updates == 2

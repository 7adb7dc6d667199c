"""Training of stage 2: what a step is made of, what the EMA is for, and when all ranks stop."""

import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import CONFIG, losses, train_run, write_run
from torch.utils.data import default_collate

from egogen import EgoGenError
from egogen.frames import read_rgb
from egogen.jobs import StoppedBySignal
from ldm.checkpoints.load import load_weights, read_weights
from ldm.config import TrainConfig, load_config
from ldm.data import read_condition
from ldm.generate import generate_batch
from ldm.images import to_image
from ldm.model import LegoModel
from ldm.split import open_training
from ldm.training.callbacks import contact_sheet
from ldm.training.module import LegoTraining
from ldm.training.order import EpochBatches, ResumableLoader
from ldm.training.run import build_data
from ldm.training.saving import Checkpoints, check_space


@pytest.fixture(scope="module")
def run_overrides(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("own"))


def first_gradients(overrides, logs, monkeypatch, *more):
    """-> gradients of the first of two optimizer steps, and how often the EMA was updated."""
    seen: list[dict] = []

    def note(self, optimizer):
        named = self.model.named_parameters()
        seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    with monkeypatch.context() as patch:
        patch.setattr(LegoTraining, "on_before_optimizer_step", note)
        folder = train_run(overrides, logs, "a", "lightning.trainer.max_steps=2", *more)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(seen) == 2
    return seen[0], last["ema_updates"]


def test_gradients_do_not_depend_on_the_accumulation(run_overrides, tmp_path, monkeypatch):
    """Two batches of one, accumulated, against one of two: mean gradients, one update of the EMA a
    step. (AdamW hides a wrong factor: the weights alone would not show it.)
    """
    alone = ["model.params.conditioner.dropout=0"]
    whole, updates = first_gradients(run_overrides, tmp_path / "1", monkeypatch, *alone)
    more = ["data.params.batch_size=1", "lightning.trainer.accumulate_grad_batches=2"]
    parts, parts_updates = first_gradients(
        run_overrides, tmp_path / "2", monkeypatch, *alone, *more
    )
    assert parts.keys() == whole.keys()
    assert {name.split(".")[0] for name in whole} == {"unet", "conditioner"}
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-3, msg=name)
    assert updates == parts_updates == 2


@pytest.fixture(scope="module")
def trained(run_overrides, tmp_path_factory):
    """A run of large steps, so that the EMA is far from the live weights -> (config, folder)."""
    more = ["model.base_learning_rate=3e-3", "lightning.trainer.max_steps=4"]
    more += ["lightning.trainer.check_val_every_n_epoch=1"]
    folder = train_run(run_overrides, tmp_path_factory.mktemp("trained"), "a", *more)
    return load_config(TrainConfig, [str(CONFIG)], [*run_overrides, *more]), folder


def averaged(config, folder, use_ema: bool) -> LegoModel:
    model = LegoModel(config.model)
    load_weights(model, read_weights(folder / "checkpoints" / "last.ckpt"), use_ema)
    return model.eval()


def test_validation_and_samples_are_of_the_averages(trained):
    config, folder = trained
    split = open_training(config)["validation"]
    logged, sheet = losses(folder)[4, "val_loss"], Image.open(folder / "samples/step_000004.png")
    found = []
    for use_ema in (True, False):
        model = averaged(config, folder, use_ema)
        pairs = build_data(open_training(config), model, 23, None, True)[1]
        module = LegoTraining(model, config.optimizer, config.lightning, seed=23)
        module.eval()
        with torch.no_grad():
            batch = default_collate([pairs[0, index] for index in range(len(pairs))])
            loss = module.losses(batch).mean().item()
        item = split.items[0]
        x = generate_batch(
            model,
            [read_condition(item, split)],
            [(item.entry.clip, item.entry.action_id)],
            config.inference,
            config.inference.scales_img[0],
            config.inference.scales_txt[0],
        )[0]
        source, target = read_rgb(item.source), read_rgb(item.target)
        made = to_image(x, source.size, config.inference.height, "clamp")
        expected = contact_sheet([(source, made, target)], config.inference.height)
        gap = np.abs(np.asarray(sheet, int) - np.asarray(expected, int)).max()
        found.append((loss, gap))
    (loss, gap), (live_loss, live_gap) = found
    assert logged == pytest.approx(loss, rel=1e-5) and gap <= 1
    assert abs(logged - live_loss) > 1e-3 and live_gap > 10


def test_another_seed_is_another_start(run_overrides, tmp_path):
    """Of the weights that no file gives; the frozen ones come from a file."""
    runs = {}
    for name, seed in (("one", "23"), ("other", "24")):
        more = ["lightning.trainer.max_steps=1", "--seed", seed]
        folder = train_run(run_overrides, tmp_path, name, *more)
        runs[name] = read_weights(folder / "checkpoints" / "last.ckpt")
        last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["ema_updates"] == 1  # the file is written after the step's average
    for part, same in (("vae", True), ("text_encoder", True), ("unet", False)):
        names = [n for n in runs["one"] if n.startswith(f"model.{part}.") and n.endswith("weight")]
        assert names
        gaps = [(runs["one"][n] - runs["other"][n]).abs().max().item() for n in names]
        assert all(gap == 0 for gap in gaps) if same else max(gaps) > 0.01, part


def test_dropout_of_the_conditioner_differs_between_ranks_epochs_and_batches(
    run_overrides, monkeypatch
):
    """Equal samples in another place of the training: other dropout, in the same place the same."""
    more = ["model.params.conditioner.dropout=0.5"]
    config = load_config(TrainConfig, [str(CONFIG)], [*run_overrides, *more])
    torch.manual_seed(0)
    model = LegoModel(config.model)
    pairs = build_data(open_training(config), model, 0, None, True)[0]
    batch = default_collate([pairs[0, index] for index in range(2)])
    batch["draw"] = torch.ones(2)  # nothing of the context is dropped as a whole

    def loss(seed=1, rank=0, epoch=0, number=0) -> float:
        module = LegoTraining(model, config.optimizer, config.lightning, seed=seed)
        module.train()
        with monkeypatch.context() as patch:
            patch.setattr(LegoTraining, "global_rank", rank)
            patch.setattr(LegoTraining, "current_epoch", epoch)
            patch.setattr(LegoTraining, "log_dict", lambda *_, **__: None)
            return module.training_step(dict(batch), number).item()

    found = [loss(), loss(seed=2), loss(rank=1), loss(epoch=1), loss(number=1)]
    assert len(set(found)) == 5 and loss() == found[0]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_one_rank_that_is_told_to_stop_stops_all(tmp_path, monkeypatch, slurm_calls, number):
    """Only Slurm's own warning has the job queued again, once, by the first rank."""

    def ranks_agree(mine: bool, all: bool = True) -> bool:
        """As Lightning's strategies do, where one of two ranks was told and the other was not."""
        return not all

    for first in (False, True):
        trainer = SimpleNamespace(global_step=3, is_global_zero=first)
        trainer.strategy = SimpleNamespace(reduce_boolean_decision=ranks_agree)
        checkpoints = Checkpoints(tmp_path / "checkpoints", every=100)
        checkpoints.saved = 3
        checkpoints.received = number if first else None
        with pytest.raises(StoppedBySignal, match="step 3: stopped by a signal"):
            checkpoints.stop_if_asked(trainer)
    assert slurm_calls() == ("requeue 77\n" if number == signal.SIGUSR1 else "")


class Addresses:
    """A dataset whose samples are what they were asked for by."""

    def __getitem__(self, address):
        return address


def loader(epoch: int = 0, done: int = 0) -> ResumableLoader:
    batches = EpochBatches(11, 2, seed=1)
    made = ResumableLoader(Addresses(), batch_sampler=batches, collate_fn=list)
    made.position = lambda: (epoch, done)
    return made


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("done", range(6))
def test_a_loader_goes_on_at_its_place(epoch, done):
    """Five batches an epoch: inside one, and at its end, where the next begins; then as usual."""
    undisturbed = []
    whole = loader()
    for number in range(4):
        whole.batch_sampler.set_epoch(number)
        undisturbed.append(list(whole))
    assert [len(batches) for batches in undisturbed] == [5] * 4
    resumed = loader()
    resumed.load_state_dict(loader(epoch, done).state_dict())
    begun = undisturbed[epoch][done:] or undisturbed[epoch + 1]
    assert list(resumed) == begun
    following = begun[0][0][0] + 1
    resumed.batch_sampler.set_epoch(following)
    assert list(resumed) == undisturbed[following]


def test_draws_of_training_pairs(run_overrides):
    """Each sample has its own t, noises and dropout, new ones every epoch; in validation t is
    spread evenly and nothing depends on the epoch.
    """
    config = load_config(TrainConfig, [str(CONFIG)], run_overrides)
    train, validation = build_data(
        open_training(config), LegoModel(config.model), 5, None, fixed=True
    )
    assert [validation[3, index]["t"] for index in range(4)] == [0, 618, 236, 854]
    drawn = [train[epoch, index] for epoch in range(8) for index in range(4)]
    for name in ("noise", "posterior_noise"):
        first = [sample[name].flatten()[0].item() for sample in drawn]
        assert len(set(first)) == len(drawn), name
    for sample in drawn:
        assert not torch.equal(sample["noise"], sample["posterior_noise"])
    shares = np.array([[sample["t"] / 1000, sample["draw"]] for sample in drawn])
    assert shares.min() >= 0 and shares.max() < 1
    assert shares.mean(axis=0).min() > 0.35 and shares.mean(axis=0).max() < 0.65
    assert np.abs(shares[:, 0] - shares[:, 1]).mean() > 0.2  # of one number they would be equal
    again = build_data(open_training(config), LegoModel(config.model), 5, None, fixed=True)[0][7, 3]
    assert torch.equal(again["noise"], drawn[-1]["noise"]) and again["t"] == drawn[-1]["t"]


def test_a_flip_is_of_both_frames(run_overrides):
    config = load_config(TrainConfig, [str(CONFIG)], run_overrides)
    found = {}
    for share in (0.0, 1.0):
        config.data.train.flip_prob = share
        data = build_data(open_training(config), LegoModel(config.model), 5, None, fixed=True)[0]
        found[share] = data[0, 2]
    for name in ("source", "edited"):
        assert torch.equal(found[0.0][name].flip(-1), found[1.0][name])
        assert not torch.equal(found[0.0][name], found[1.0][name])


@pytest.mark.parametrize(
    "override",
    [
        "data.params.batch_size=1",
        "data.params.train.params.flip_prob=0.25",
        "model.params.cond_drop_prob=0.1",
        "model.params.ema_decay=0.5",
        "model.weight_decay=0.5",
    ],
)
def test_a_run_of_other_values_is_not_continued(run_overrides, trained, override):
    """Even a finished one; what decides only how long and how it runs may change."""
    _, folder = trained
    more = ["model.base_learning_rate=3e-3", "lightning.trainer.max_steps=4"]
    harmless = "data.params.num_workers=1", "lightning.log_every=7", "inference.steps=3"
    train_run(run_overrides, folder.parent, folder.name, *more, *harmless)
    with pytest.raises(EgoGenError, match=f"begun with other values of {override.split('=')[0]};"):
        train_run(run_overrides, folder.parent, folder.name, *more, override)


def test_a_run_of_another_seed_is_not_continued(run_overrides, trained):
    """Folders of before, which do not tell their seed, are."""
    _, folder = trained
    more = ["model.base_learning_rate=3e-3", "lightning.trainer.max_steps=4"]
    with pytest.raises(EgoGenError, match="made with seed 23, expected 24"):
        train_run(run_overrides, folder.parent, folder.name, *more, "--seed", "24")
    record = folder / "made_by.json"
    kept = record.read_bytes()
    record.unlink()
    train_run(run_overrides, folder.parent, folder.name, *more, "--seed", "24")
    record.write_bytes(kept)


def test_room_counts_the_checkpoints_that_are_there(tmp_path, monkeypatch):
    """They are replaced: a run that goes on needs no more than it has."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1500))
    (tmp_path / "last.ckpt").write_bytes(bytes(1000))
    check_space(tmp_path, 2, 1000)
    with pytest.raises(EgoGenError, match="No space left on device for 3 checkpoints"):
        check_space(tmp_path, 3, 1000)

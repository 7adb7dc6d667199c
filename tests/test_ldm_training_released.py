"""Training against the released numbers, through `LegoTraining` under Lightning (tiny model).

The released run was in evaluation mode: here the conditioner's dropout of 0.1 is set to 0.
"""

import copy
import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from released_model import DATA, SETTINGS, TINY, check, inputs, pixels, tiny_model
from torch.utils.data import DataLoader

from ldm.checkpoints.released_names import released_names
from ldm.conditioning import dropout_masks
from ldm.config import TrainConfig, load_config
from ldm.data import TrainingPairs
from ldm.schedule import NoiseSchedule, released_schedule
from ldm.split import open_split
from ldm.training.callbacks import EMAUpdate
from ldm.training.ema import EMA
from ldm.training.module import LegoTraining, bound_weights, rate_factor

GOLDEN = np.load(DATA / "train.npz")
EXPECTED = json.loads((DATA / "train.json").read_text())
ATOL = 2e-4  # of tensors
UNET = "model.diffusion_model."
CONDITIONER = ("projection_img.", "projection_txt.", "self_attn_mix.")
GROUPS = {"model.*": UNET, "projection_img.*": "projection_img."}
GROUPS |= {"projection_txt.*": "projection_txt.", "self_attn_mix.*": "self_attn_mix."}


def golden_batch() -> dict:
    """The batch of 4 as `TrainingPairs` gives it (pixels, texts, features and its draws)."""
    prompts = [SETTINGS["prompts"][i] for i in (1, 2, 3, 1)]
    return {
        "edited": torch.cat([pixels(f"train.edited.{i}", 128, 128) for i in range(4)]),
        "source": torch.cat([pixels(f"train.source.{i}", 128, 128) for i in range(4)]),
        "prompt": prompts,
        "features": {
            "image": inputs("train.llava_image", 4, 256, 5120),
            "text": inputs("train.llava_text", 4, 77, 5120),
        },
        "t": torch.tensor(SETTINGS["t"]),
        "draw": torch.tensor(SETTINGS["draws"]),
        "noise": inputs("train.noise", 4, 4, 16, 16),
        "posterior_noise": inputs("train.vae_noise", 4, 4, 16, 16),
    }


class Recorder(pl.Callback):
    """What the UNet was given and gave, the gradients, and the weights before the step."""

    def __init__(self, names: dict[str, str]):
        self.names = names  # own name -> released name

    def tensors(self, module, what=lambda p: p):
        pairs = module.model.named_parameters()
        return {self.names[n]: what(p) for n, p in pairs if p.requires_grad}

    def on_train_start(self, trainer, module):
        self.before = self.tensors(module, lambda p: p.detach().clone())
        self.optimizer = trainer.optimizers[0]
        keep = lambda _, args, out: setattr(self, "unet", (*args, out.sample))  # noqa: E731
        self.hook = module.model.unet.register_forward_hook(keep)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.grads = self.tensors(module, lambda p: p.grad.clone())

    def on_train_end(self, trainer, module):
        self.hook.remove()
        self.logged = dict(trainer.callback_metrics)
        self.after = {self.names[n]: p.detach() for n, p in module.model.named_parameters()}


def run_step(*overrides: str, micro_batches: int = 1):
    """One optimizer step on the golden batch -> (recorder, module)."""
    words = [*TINY, "model.params.conditioner.dropout=0", *overrides]
    config = load_config(TrainConfig, [], words)
    model = copy.deepcopy(tiny_model())
    model.config = config.model
    module = LegoTraining(model, config.optimizer, config.lightning, seed=0)
    recorder = Recorder(released_names(model))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=micro_batches,
        callbacks=[EMAUpdate(config.model.ema_every_micro_batch), recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader([golden_batch()] * micro_batches, batch_size=None)
    trainer.fit(module, batches)
    return recorder, module


@pytest.fixture(scope="module")
def default():
    return run_step()


@pytest.fixture(scope="module")
def as_released():
    return run_step("as_released=true")


@pytest.fixture(params=["default", "as_released"])
def step(request):
    """Gradients, updates and averages of the UNet are the same either way."""
    return request.getfixturevalue(request.param)


def test_what_the_unet_is_given_and_gives(default):
    x, t, context, eps = default[0].unet
    assert t.tolist() == SETTINGS["t"]
    check(x[:, :4].detach(), GOLDEN, "x_noisy", ATOL)
    check(x[:, 4:].detach(), GOLDEN, "c_concat", ATOL)
    check(context.detach(), GOLDEN, "context", ATOL)
    check(eps.detach(), GOLDEN, "eps", ATOL)


@torch.no_grad()
def test_latents_and_loss(default):
    recorder, module = default
    batch = golden_batch()
    encoded = module.encode(batch)
    z = module.model.posterior_sample(encoded["edited_moments"], encoded["posterior_noise"])
    check(z, GOLDEN, "z", ATOL)
    error = (recorder.unet[3] - batch["noise"]) ** 2
    check(error.flatten(1).mean(1), GOLDEN, "per_sample_mse", ATOL)
    assert recorder.logged["loss"].item() == pytest.approx(EXPECTED["loss"], rel=1e-5)
    bound = EXPECTED["loss_dict"]["val/loss_vlb"]
    assert recorder.logged["loss_vlb"].item() == pytest.approx(bound, rel=1e-4)


def test_gradients(step):
    recorder, module = step
    trained = module.model.conditioner.encoders["image"].projection.weight.requires_grad
    for name, norm in EXPECTED["grad_norm"].items():
        if trained or name.startswith(UNET):
            found = recorder.grads[name].double().norm().item()
            assert found == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    for group, norm in EXPECTED["grad_norm_total"].items():
        parts = [g for n, g in recorder.grads.items() if n.startswith(GROUPS[group])]
        if trained or group == "model.*":
            total = torch.stack([part.double().norm() for part in parts]).norm().item()
            assert total == pytest.approx(norm, rel=1e-3, abs=1e-6), group
    for key in [k for k in GOLDEN if k.startswith("grad/") and k.count("/") == 1]:
        name = key.removeprefix("grad/")
        if trained or name.startswith(UNET):
            check(recorder.grads[name], GOLDEN, key, ATOL)


def test_frozen_parts_get_no_gradients(step):
    module = step[1]
    for part in (module.model.vae, module.model.text_encoder):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())


def keys(kind: str) -> list[str]:
    """Released names of the stored arrays of a kind, such as after_step."""
    names = [k.split("/", 1)[1] for k in GOLDEN if k.startswith(f"{kind}/")]
    return [name for name in names if "/" not in name]


def test_optimizer_step(step):
    recorder, _ = step
    for name in keys("after_step"):
        steady = (recorder.grads[name].abs() > 1e-5).numpy()  # others have an unstable sign
        assert steady.mean() > 0.9
        update = (recorder.after[name] - recorder.before[name]).numpy()
        for actual, kind in ((update, "update"), (recorder.after[name].numpy(), "after_step")):
            expected = GOLDEN[f"{kind}/{name}"].reshape(update.shape)
            np.testing.assert_allclose(actual[steady], expected[steady], atol=2e-6, rtol=0)


def test_average_after_the_step(step):
    recorder, module = step
    assert module.ema.updates == EXPECTED["ema_num_updates_after_step"]
    names = {released: own for own, released in recorder.names.items()}
    for name in keys("ema_after_step"):
        steady = (recorder.grads[name].abs() > 1e-5).numpy()
        shadow = module.ema.state_dict()[names[name]].numpy()
        expected = GOLDEN[f"ema_after_step/{name}"].reshape(shadow.shape)
        np.testing.assert_allclose(shadow[steady], expected[steady], atol=2e-6, rtol=0)


def test_what_is_trained(default, as_released):
    expected = EXPECTED["optimizer"]
    for recorder, module in (default, as_released):
        (group,) = recorder.optimizer.param_groups
        assert type(recorder.optimizer).__name__ == expected["class"]
        for name, value in expected["defaults"].items():
            assert tuple(np.atleast_1d(group[name])) == tuple(np.atleast_1d(value)), name
        released = recorder is as_released[0]
        count = sum(p.numel() for p in group["params"])
        extra = 0 if released else expected["n_trainable_not_in_optimizer"]
        assert count == expected["n_parameters"] + extra
        changed = {
            name
            for name in EXPECTED["unchanged_by_step"]
            if name in recorder.before
            and not torch.equal(recorder.before[name], recorder.after[name])
        }
        averaged = any(n.startswith("conditioner.") for n in module.ema.names)
        if released:
            assert len(group["params"]) == expected["n_tensors"]
            live = tiny_model().conditioner.state_dict()
            after = module.model.conditioner.state_dict()
            assert all(torch.equal(live[n], after[n]) for n in live) and not averaged
        else:
            assert changed == set(EXPECTED["unchanged_by_step"]) and averaged


def test_released_cadence_of_the_average():
    """Four micro-batches a step: four updates, or one."""
    for overrides, updates in ((["as_released=true"], 4), ([], 1)):
        module = torch.nn.Module()
        module.ema = EMA(torch.nn.Linear(1, 1), 0.9999)
        config = load_config(TrainConfig, [], overrides)
        callback = EMAUpdate(config.model.ema_every_micro_batch)
        trainer = type("Trainer", (), {"global_step": 0})()
        callback.on_train_start(trainer)
        for micro in range(4):
            trainer.global_step = int(micro == 3)
            callback.on_train_batch_end(trainer, module)
        assert module.ema.updates == updates


def test_decays_and_the_toy_average():
    toy = EXPECTED["ema"]["toy"]
    module = torch.nn.Module()
    module.p = torch.nn.Parameter(torch.tensor(toy["start"]))
    average = EMA(module, 0.9999)
    for number, (decay, shadow) in enumerate(
        zip(EXPECTED["ema"]["decay_first_20"], toy["shadow"], strict=True), start=1
    ):
        with torch.no_grad():
            module.p += torch.tensor(toy["added_before_each_update"])
        average.update()
        assert average.updates == number
        assert average.ema.cur_decay_value == pytest.approx(decay, rel=1e-6)
        torch.testing.assert_close(average.state_dict()["p"], torch.tensor(shadow))
    first = EXPECTED["ema"]["first_update_at_max_decay"]
    reached = [average.ema.get_decay(k + 1) >= 0.9999 for k in (first - 1, first)]
    assert reached == [False, True]


@pytest.mark.parametrize("name", ["train_ego4d", "train_epickitchen"])
def test_learning_rates(name):
    config = load_config(TrainConfig, [str(DATA.parents[2] / "configs" / f"{name}.yaml")])
    params = config.model.learning_rate
    rates = [config.optimizer.base_learning_rate * rate_factor(step, params) for step in range(12)]
    assert rates == pytest.approx(EXPECTED["lr"][name], rel=1e-9)


def test_dropout_table():
    table = EXPECTED["mask_table"]
    draws = torch.tensor([float(row["draw"]) for row in table])
    prompt, image = dropout_masks(draws, EXPECTED["dropout_uncond"])
    assert prompt.tolist() == [row["drop_prompt"] for row in table]
    assert image.tolist() == [row["drop_image"] for row in table]


def test_schedule_and_noising():
    params = load_config(TrainConfig, []).model
    own = NoiseSchedule(params.linear_start, params.linear_end, params.timesteps)
    vectors = released_schedule(params.linear_start, params.linear_end, params.timesteps)
    vectors["lvlb_weights"] = bound_weights(params)
    for key in [k for k in GOLDEN if k.startswith("schedule/") and k.count("/") == 1]:
        name = key.removeprefix("schedule/")
        np.testing.assert_allclose(vectors[name], GOLDEN[key], rtol=1e-4, atol=0)
        if hasattr(own, name):
            np.testing.assert_allclose(getattr(own, name), GOLDEN[key], rtol=1e-6, atol=0)
    t = torch.tensor(SETTINGS["t"])
    weights = vectors["lvlb_weights"][t].tolist()
    assert weights == pytest.approx(EXPECTED["lvlb_weights_at_t"], rel=1e-4)
    noisy = own.add_noise(inputs("train.q_x0", 4, 4, 8, 8), inputs("train.q_noise", 4, 4, 8, 8), t)
    check(noisy, GOLDEN, "q_sample", ATOL)


@pytest.mark.parametrize("flip", SETTINGS["flips"])
def test_dataset_items(flip):
    golden, root = np.load(DATA / "dataset.npz"), DATA / "dataset"
    data = TrainConfig().data.train
    data.data_path, data.edit_path = str(root / "frames"), str(root / "edits.json")
    data.res, data.flip_prob = SETTINGS["res"], flip
    features = root / "features_small"
    data.features = {name: str(features / name) for name in ("image", "text")}
    params = load_config(TrainConfig, [], ["model.params.conditioner.feature_dim=16"]).model
    split = open_split(data, params.conditioner.features)
    pairs = TrainingPairs(split, timesteps=params.timesteps, latent_shape=(4, 32, 32), seed=0)
    texts = json.loads((DATA / "dataset.json").read_text())["eval"]
    stored = {int(k.split("/")[1]) for k in golden if k.startswith("train/") and k[6].isdigit()}
    assert len(pairs) == len(stored)
    for index in sorted(stored):
        item = pairs[0, index]
        assert item["prompt"] == texts[index]["edit"]
        for name in ("source", "edited"):
            key = f"train/flip{int(flip)}/{index}/{name}"
            if key in golden:
                check(item[name], golden, key, 2 / 255)
        for own, name in (("image", "llava_image"), ("text", "llava_text")):
            check(item["features"][own], golden, f"train/{index}/{name}", 0)

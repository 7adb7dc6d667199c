"""Distillation of guidance: what a student learns, its files, and the scales that it stands for."""

import json

import pytest
import torch
from small_training import CONFIG, kill, losses, train_run, write_run
from test_ldm_training import spawn_ddp
from torch.utils.data import default_collate

import ldm.cache
from egogen import EgoGenError
from egogen.seeds import stable_seed
from ldm.checkpoints.convert import convert
from ldm.checkpoints.load import read_file
from ldm.config import GenerateConfig, TrainConfig, load_config
from ldm.data import read_condition
from ldm.generate import generate_batch, load_model, model_denoiser
from ldm.model import LegoModel
from ldm.pipeline import LegoPipeline
from ldm.sampling import Guidance, guided_denoiser
from ldm.split import open_training
from ldm.training.distill import begin, guided_prediction
from ldm.training.module import LegoTraining
from ldm.training.run import build_data

FIXED = ("model.params.distill.scale_txt=1.5", "model.params.distill.scale_img=1.25")
RANGES = ("model.params.distill.scale_txt=[1,3]", "model.params.distill.scale_img=[1,1.5]")
SHOWN = ("inference.scales_img=[1.25]", "lightning.trainer.max_steps=3")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Overrides of a small run, and the checkpoint of a teacher far from its EMA."""
    root = tmp_path_factory.mktemp("distill")
    overrides = write_run(root)
    more = ("model.base_learning_rate=3e-3", "lightning.trainer.max_steps=2")
    more += ("model.params.ema_decay=0.5",)
    folder = train_run(overrides, root / "teacher", "a", *more)
    return [*overrides, "model.params.conditioner.dropout=0"], folder / "checkpoints" / "last.ckpt"


def learn(world, logs, name, *more):
    overrides, teacher = world
    words = [*SHOWN, f"model.params.distill.teacher={teacher}", *more]
    return train_run(overrides, logs, name, *words) / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def fixed(world, tmp_path_factory):
    return learn(world, tmp_path_factory.mktemp("fixed"), "a", *FIXED)


@pytest.fixture(scope="module")
def ranged(world, tmp_path_factory):
    more = (*RANGES, "model.base_learning_rate=3e-3")
    return learn(world, tmp_path_factory.mktemp("ranged"), "a", *more)


def params_of(world, *more):
    return load_config(TrainConfig, [str(CONFIG)], [*world[0], "model.params.load_ema=true", *more])


def some_batch(config, model):
    pairs = build_data(open_training(config), model, 23, None, True)[0]
    return default_collate([pairs[0, i] for i in range(2)])


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("scales", [(7.5, 1.5), (1.5, 1.0), (1.0, 1.0)])
def test_the_target_is_what_the_sampler_uses(world, prediction, scales):
    config = params_of(world, f"model.params.parameterization={prediction}")
    torch.manual_seed(0)
    model = LegoModel(config.model).eval()
    module = LegoTraining(model, config.optimizer, config.lightning, seed=0).eval()
    batch = module.encode(some_batch(config, model))
    with torch.no_grad():
        given = model.conditions(batch, module.empty_prompt)
        for t in (0, 300, 999):
            noisy, sigma = torch.randn_like(batch["noise"]), model.schedule.sigmas[t]
            x = noisy * (sigma**2 + 1) ** 0.5
            wanted = model_denoiser(model, given, scales, None)(x, sigma)
            rows = torch.tensor([scales] * 2)
            predicted = guided_prediction(model, given, noisy, torch.tensor([t, t]), rows)
            alone = Guidance([1.0], given.context, torch.arange(2), given.image_latents)
            denoise = guided_denoiser(lambda *_, p=predicted: p, model.schedule, alone, prediction)
            torch.testing.assert_close(denoise(x, sigma), wanted, atol=2e-4, rtol=1e-3)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_at_scales_of_one(world):
    config = params_of(world)
    batch = some_batch(config, LegoModel(config.model)) | {"draw": torch.zeros(2)}  # not dropped
    found = {}
    for scales in ((1.0, 1.0), (1.5, 1.0), (1.0, 1.25), [[1.0, 1.5], 1.0]):
        config.model.distill.teacher = str(world[1])
        config.model.distill.scale_txt, config.model.distill.scale_img = scales
        model = LegoModel(config.model)
        teacher = begin(model)
        rest = config.optimizer, config.lightning, 0, False, teacher
        module = LegoTraining(model, *rest).eval()
        with torch.no_grad():
            found[str(scales)] = module.losses(batch)
            once = module.losses(batch | {"scales": torch.zeros(2, 2)})
        assert torch.equal(found[str(scales)], once) != isinstance(scales[0], list)
    same, *others = found.values()
    assert same.max() < 1e-11 and all(loss.min() > 1e-9 for loss in others)
    assert not any(name.startswith("teacher") for name, _ in module.named_parameters())


def test_it_begins_as_the_average_of_its_teacher(world, tmp_path):
    still = learn(world, tmp_path, "still", *FIXED, "model.base_learning_rate=0")
    before, after = torch.load(world[1])["state_dict"], torch.load(still)["state_dict"]
    averaged = [name for name in before if name.startswith("ema.")]
    assert averaged and before.keys() == after.keys()
    for name in before:
        source = name.replace("model.", "ema.", 1) if name.startswith("model.") else name
        source = source if source in before else name
        assert torch.equal(after[name], before[source]), name
    assert any(not torch.equal(before[n], before[n.replace("ema.", "model.", 1)]) for n in averaged)


def test_it_learns(world, tmp_path):
    more = ("model.params.distill.scale_txt=9", "model.params.distill.scale_img=3")
    more += ("inference.scales_txt=[9]", "inference.scales_img=[3]")
    more += ("lightning.trainer.max_steps=40", "lightning.checkpoint_every=40")
    more += ("model.base_learning_rate=5e-5", "model.params.ema_decay=0.5")
    folder = learn(world, tmp_path, "a", *more).parents[1]
    found = {step: value for (step, kind), value in losses(folder).items() if kind == "val_loss"}
    assert found[max(found)] < 0.95 * found[min(found)]
    text = (folder / "metrics.jsonl").read_text()
    assert "loss_vlb" not in text and (folder / "samples" / "step_000040.png").exists()


def test_a_killed_run_goes_on_exactly(world, ranged, tmp_path, monkeypatch):
    words = [f"model.params.distill.teacher={world[1]}", *SHOWN, *RANGES]
    words.append("model.base_learning_rate=3e-3")
    kill(monkeypatch, [*world[0], *words], tmp_path, 2)
    again = learn(world, tmp_path, "a", *RANGES, "model.base_learning_rate=3e-3")
    assert losses(again.parents[1]) == losses(ranged.parents[1])
    one, two = (torch.load(path)["state_dict"] for path in (again, ranged))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.slow("stage 2 on two processes, distillation")
def test_two_processes(world, fixed, tmp_path):
    """DDP over two processes with half the batch and a teacher each: losses of one process."""
    both = spawn_ddp(
        tmp_path, *world[0], *SHOWN, *FIXED, f"model.params.distill.teacher={world[1]}"
    )
    wanted = losses(fixed.parents[1])
    for place, loss in losses(both).items():
        assert loss == pytest.approx(wanted[place], rel=1e-4), place
    assert read_file(both / "checkpoints/last.ckpt")[1]["distill"] == read_file(fixed)[1]["distill"]


def test_a_cache_stands_in_for_the_encoders(world, fixed, tmp_path):
    cache = str(tmp_path / "cache")
    ldm.cache.main(["--config", str(CONFIG), "--out", cache, *world[0]])
    path = learn(world, tmp_path, "a", *FIXED, f"data.params.cache_path={cache}")
    found, wanted = losses(path.parents[1]), losses(fixed.parents[1])
    assert found.keys() == wanted.keys()
    assert all(found[key] == pytest.approx(wanted[key], rel=1e-3) for key in found)


def frame(world, ckpt, scale_txt, scale_img, loras=(), **settings):
    """-> latents of the first validation entry in two steps, and evaluations of the network."""
    config = params_of(world)
    model, counts = load_model(config.model, str(ckpt), CPU, loras), []
    model.unet.register_forward_pre_hook(lambda _, given: counts.append(len(given[0])))
    split = open_training(config)["validation"]
    samples, scales = [read_condition(split.items[0], split)], (scale_img, scale_txt)
    for name, value in settings.items():
        setattr(config.inference, name, value)
    made = generate_batch(model, samples, [("a",)], config.inference, *scales, decode=False)
    return made, sum(counts)


def test_one_evaluation_a_step(world, fixed, ranged):
    assert frame(world, world[1], 1.5, 1.25)[1] == 6
    made, count = frame(world, fixed, 1.5, 1.25)
    assert count == 2
    within, count = frame(world, fixed, 1.5, 1.25, guidance_interval=[0.3, 5.0])
    assert count == 2 and torch.equal(within, made)
    found = [frame(world, ranged, *scales) for scales in ((1, 1), (3, 1), (3, 1.5))]
    assert [count for _, count in found] == [2, 2, 2]
    for one, two in zip(found, found[1:], strict=False):
        assert (one[0] - two[0]).abs().max() > 1e-4  # the network is told


ADAPTED = ("model.params.lora.rank=2", "model.base_learning_rate=3e-2")


def test_a_student_of_adapters_is_its_teacher_and_they_at_scales_of_one(world, tmp_path):
    ckpt = learn(world, tmp_path, "a", *FIXED, *ADAPTED)
    made, count = frame(world, ckpt, 1.5, 1.25)
    lora = [str(ckpt.with_name("pytorch_lora_weights.safetensors"))]
    model = load_model(params_of(world).model, str(world[1]), CPU, lora)
    before, after = (load_model(params_of(world).model, str(x), CPU) for x in (world[1], ckpt))
    assert count == 2 and frame(world, world[1], 1, 1, loras=lora)[1] == 2
    for name, value in after.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=0)
        learnt = name.startswith("unet") and ".to_" in name and name.endswith("weight")
        assert torch.equal(before.state_dict()[name], value) != learnt, name
    torch.testing.assert_close(frame(world, world[1], 1, 1, loras=lora)[0], made, atol=1e-3, rtol=0)
    again = learn(world, tmp_path, "again", *FIXED, *ADAPTED, "lightning.trainer.max_steps=2")
    learn(world, tmp_path, "again", *FIXED, *ADAPTED)  # goes on to the third step
    one, two = (torch.load(path)["state_dict"] for path in (ckpt, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_student_of_adapters_is_told_scales(world, tmp_path):
    targets = "model.params.lora.targets=[attention,cond_proj]"
    ckpt = learn(world, tmp_path, "a", *RANGES, *ADAPTED, targets)
    one, two = (frame(world, ckpt, *scales)[0] for scales in ((1, 1), (3, 1.5)))
    assert (one - two).abs().max() > 1e-4


def test_scales_that_it_was_not_distilled_from(world, fixed, ranged):
    for ckpt, scales, told in (
        (fixed, (7.5, 1.25), "inference.scales_txt: 7.5, expected 1.5"),
        (fixed, (1.5, 1.0), "inference.scales_img: 1.0, expected 1.25"),
        (ranged, (3.5, 1.0), "inference.scales_txt: 3.5, expected 1 to 3"),
        (ranged, (1.0, 0.5), "inference.scales_img: 0.5, expected 1 to 1.5"),
    ):
        with pytest.raises(EgoGenError, match=told):
            frame(world, ckpt, *scales)


@pytest.mark.parametrize("kind", ["fixed", "ranged"])
def test_folders_and_files_remember(world, kind, request, tmp_path):
    ckpt, config = request.getfixturevalue(kind), params_of(world)
    note = read_file(ckpt)[1]["distill"]
    convert(ckpt, tmp_path / "folder", "diffusers", config.model)
    convert(tmp_path / "folder", tmp_path / "own.ckpt", "own", config.model)
    assert read_file(tmp_path / "own.ckpt")[1]["distill"] == note
    wanted = frame(world, ckpt, 1.5, 1.25)[0]
    assert torch.equal(frame(world, tmp_path / "own.ckpt", 1.5, 1.25)[0], wanted)
    pipe = LegoPipeline.from_pretrained(tmp_path / "folder")
    pipe.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/model_index.json").read_text())["distill"] == note
    assert pipe.model.config.distill.note == note
    split = open_training(config)["validation"]
    item = split.items[0]
    features = {n: v[None] for n, v in read_condition(item, split)["features"].items()}
    call = {"num_inference_steps": 2, "output_type": "latent", "features": features}
    call["resolution"] = 32
    call |= {"guidance_scale": 1.5, "image_guidance_scale": 1.25, "sampler": "euler_ancestral"}
    call["generator"] = torch.Generator().manual_seed(stable_seed(0, "a"))
    found = pipe(item.source, split.prompt(item), **call).images
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(EgoGenError, match="^guidance_scale.*7.5, expected"):
        pipe(item.source, split.prompt(item), **call | {"guidance_scale": 7.5})


def test_the_released_layout_takes_fixed_scales_alone(world, fixed, ranged, tmp_path):
    params = params_of(world).model
    lines = convert(fixed, tmp_path / "a.ckpt", "released", params)
    assert "both scales at 1" in lines[-1]
    plain, count = frame(world, tmp_path / "a.ckpt", 1.0, 1.0)
    assert count == 2 and torch.equal(plain, frame(world, fixed, 1.5, 1.25)[0])
    with pytest.raises(EgoGenError, match="last.ckpt: is told guidance scales"):
        convert(ranged, tmp_path / "b.ckpt", "released", params)
    assert not (tmp_path / "b.ckpt").exists()


@pytest.mark.parametrize("form, name", [("released", "t.ckpt"), ("diffusers", "folder")])
def test_a_teacher_in_another_layout(form, name, world, fixed, tmp_path):
    params = params_of(world, "model.params.ema_decay=0.5").model
    convert(world[1], tmp_path / name, form, params)
    path = learn((world[0], tmp_path / name), tmp_path, "a", *FIXED)
    assert losses(path.parents[1]) == losses(fixed.parents[1])


def test_a_student_teaches_nobody(world, fixed, tmp_path):
    with pytest.raises(EgoGenError, match="last.ckpt: was distilled itself"):
        learn((world[0], fixed), tmp_path, "a", *FIXED)
    assert not (tmp_path / "a").exists()


def test_generation_by_the_command_asks_for_its_scales(world, fixed, tmp_path):
    """Refused before anything is written; `inference.preset` needs nothing else."""
    link = tmp_path / "s.ckpt"
    link.symlink_to(fixed)
    config, train = load_config(GenerateConfig, []), params_of(world)
    config.model, config.data = train.model, train.data.validation
    config.metadata_path = str(train.data.validation.edit_path).replace("val", "metadata")
    config.inference.steps, config.inference.height = 2, 32
    with pytest.raises(EgoGenError, match="inference.scales_txt: 7.5, expected 1.5"):
        ldm.generate.generate_chunk(config, str(link), 1, 1, CPU)
    assert not (tmp_path / "s").exists()
    config.inference.scales_txt, config.inference.scales_img = [1.5], [1.25]
    assert not ldm.generate.generate_chunk(config, str(link), 1, 1, CPU)
    assert list((tmp_path / "s").rglob("*.jpg"))

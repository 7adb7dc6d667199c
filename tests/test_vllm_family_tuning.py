"""Tuning of any image-text model: samples, loss, what learns, and what the result is good for."""

from __future__ import annotations

import json
import pickle

import model_families
import pytest
import torch
from model_families import FAMILIES
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from small_tuning import flags, run_script
from transformers import AutoModelForImageTextToText, AutoProcessor

from egogen.atomic import read_json
from egogen.errors import EgoGenError
from llava.checkpoints.hub_model import load_hub
from llava.describing.describer import load_describer
from llava.describing.job import Decoding
from llava.tokens import IGNORE
from llava.train import merge_lora, trainer
from llava.train.data import read_conversations
from llava.train.hub_tuning import HubData, mean_over_targets
from llava.train.train import main

IN_DEPTH = ["qwen2_5_vl", "idefics3", "gemma3"]
OTHERS = [family for family in FAMILIES if family != "llava"]  # that one has a path of its own
QUESTIONS = ("How does the person cut?", "What is in the hand?")
ANSWERS = ("With the left.", "A <|im_end|> mug.")
LORA = ["--lora_enable", "True", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0"]


def turns(*texts: str) -> list[dict]:
    return [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Four conversations, five rounds: one has two of them, one has no frame."""
    root = tmp_path_factory.mktemp("frames")
    for number in range(3):
        Image.effect_noise((80, 60), 90).convert("RGB").save(root / f"{number}.png")
    first, second = (f"<image>\n{text}" for text in QUESTIONS)
    rows = [
        {"id": "a", "image": "0.png", "conversations": turns(first, ANSWERS[0])},
        {"id": "b", "image": "1.png", "conversations": turns(second, ANSWERS[1])},
        {"id": "c", "conversations": turns("And now?", "Nothing at all.")},
        {
            "id": "d",
            "image": "2.png",
            "conversations": turns(first, ANSWERS[1], "And then?", "Cut."),
        },
    ]
    (root / "all.json").write_text(json.dumps(rows))
    (root / "two.json").write_text(json.dumps(rows[:2]))
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> its tiny model, made once."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(family: str):
        if family not in made:
            made[family] = model_families.write(family, root / family)
        return made[family]

    return folder


def named(model, frames, name="all.json") -> dict:
    return {"model_name_or_path": model, "data_path": frames / name, "image_folder": frames}


def command(model, frames, output, *more, data="all.json", **options) -> list[str]:
    paths = {**named(model, frames, data), "output_dir": output, "use_cpu": True}
    words = [str(part) for name, value in paths.items() for part in (f"--{name}", value)]
    return [*words, *flags(**options), *map(str, more)]


def samples(folder, frames, **options) -> tuple:
    """-> the model with its tools, its samples and what makes batches of them."""
    hub = load_hub(folder, device="cpu")
    rows = read_conversations(frames / "all.json")
    data = HubData(rows, frames, hub, **{"max_length": 2048, "cache": 0, **options})
    return hub, data, data.collate


def texts(folder, frames) -> list[str]:
    """What the model says of the first two frames, greedily."""
    describer = load_describer(folder, Decoding(0, 1, 24), device="cpu")
    images = [Image.open(frames / f"{number}.png") for number in range(2)]
    names = [("a", "0"), ("b", "0")]
    made = describer.describe(images, QUESTIONS, seeds=[0, 0], names=names)
    return [description.text for description in made]


@pytest.mark.parametrize("family", OTHERS)
def test_targets_are_the_answers(family, folders, frames):
    hub, data, _ = samples(folders(family), frames)
    escaped = [hub.escape(text) for text in ANSWERS]
    expected = [*escaped, "Nothing at all.", escaped[1], "Cut."]
    assert len(data) == 5 and data.dropped == 0
    for sample, text in zip(data, expected, strict=False):
        ids, labels = sample["input_ids"][0], sample["labels"][0]
        targets = labels[labels != IGNORE]
        assert torch.equal(targets, ids[-len(targets) :]), "at the end, and only there"
        said = hub.processor.tokenizer.decode(targets[:-1]).strip()
        assert said == text
        assert int(targets[-1]) in hub.ends
    # The second round shows what was said in the first one.
    assert escaped[1] in hub.processor.tokenizer.decode(data[4]["input_ids"][0])
    assert int((data[4]["input_ids"] == hub.image_id).sum()) == hub.rows


@pytest.mark.parametrize("family", OTHERS)
def test_loss_and_gradients_are_those_of_plain_transformers(family, folders, frames):
    """Of a batch, padded and with a sample without a frame; and of its samples one by one."""
    hub, data, collator = samples(folders(family), frames)
    model = hub.model.train()

    def run(rows: list[int], plain: bool = False) -> tuple:
        batch = collator([data[row] for row in rows])
        found = int((batch["labels"] != IGNORE).sum())
        model.zero_grad()
        if plain:
            del batch["logits_to_keep"]
            loss = model(**batch).loss
        else:
            labels = batch.pop("labels")
            loss = mean_over_targets(model(**batch), labels, found)
        loss.backward()
        return float(loss), found, {n: p.grad for n, p in model.named_parameters()}

    loss, _, gradients = run([0, 2, 4])
    expected, _, theirs = run([0, 2, 4], plain=True)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, value in theirs.items():
        if value is not None:
            torch.testing.assert_close(gradients[name], value, atol=1e-6, rtol=1e-4, msg=name)
    alone = [run([row])[:2] for row in (0, 2, 4)]
    total = sum(number for _, number in alone)
    assert loss == pytest.approx(sum(mean * number for mean, number in alone) / total, rel=1e-5)


def test_a_batch_without_frames_moves_no_projector(folders, frames):
    """Its gradients are zero, not missing: other processes wait for them."""
    hub, data, collator = samples(folders("qwen2_5_vl"), frames)
    batch = collator([data[2]])
    labels = batch.pop("labels")
    mean_over_targets(hub.model.train()(**batch), labels, int((labels != IGNORE).sum())).backward()
    for name in hub.projector():
        for parameter in hub.model.get_submodule(name).parameters():
            assert parameter.grad is not None and not parameter.grad.any()


def test_long_samples_are_cut_from_the_right(folders, frames, tmp_path):
    hub, whole, _ = samples(folders("idefics3"), frames)
    asked = whole[0]["input_ids"].shape[1] - int((whole[0]["labels"] != IGNORE).sum())
    _, data, _ = samples(folders("idefics3"), frames, max_length=asked + 3)
    assert torch.equal(data[0]["input_ids"], whole[0]["input_ids"][:, : asked + 3])
    assert all(data[row]["input_ids"].shape[1] <= asked + 3 for row in range(len(data)))
    assert all((data[row]["labels"] != IGNORE).any() for row in range(len(data)))
    with pytest.raises(EgoGenError, match="anything to learn"):
        samples(folders("idefics3"), frames, max_length=9)


def test_samples_go_to_other_processes(folders, frames):
    hub, data, collator = samples(folders("gemma3"), frames, cache=2)
    assert data[0]["pixel_values"] is not None  # an image is kept by now
    there, joined = pickle.loads(pickle.dumps((data, collator)))
    found, expected = joined([there[0], there[2]]), collator([data[0], data[2]])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found if name != "use_cache")
    assert len(pickle.dumps(data)) < 1 << 20, "without the weights"


@pytest.mark.parametrize("family", OTHERS)
def test_a_step_of_every_family(family, folders, frames, tmp_path):
    base = folders(family)
    main(command(base, frames, tmp_path / "out", max_steps=1))
    tuned, found = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(found.values()), found
    before = AutoModelForImageTextToText.from_pretrained(base)
    hub = load_hub(base, device="cpu")
    decoder = hub.model.get_decoder()
    frozen = tuple(
        f"model.{name}."
        for name, child in hub.model.base_model.named_children()
        if child is not decoder
    )
    learnt, whole = dict(tuned.named_parameters()), tuple(hub.projector())
    known = dict(before.named_parameters())
    changed = {name for name, value in known.items() if not torch.equal(value, learnt[name])}
    learns = {name for name in known if not name.startswith(frozen) or name.startswith(whole)}
    assert changed <= learns, "the vision encoder stays as it is"
    assert {name for name in known if name.startswith(whole)} <= changed
    assert changed == learns
    generation = "generation_config.json"
    assert read_json(tmp_path / "out" / generation) == read_json(base / generation)
    theirs, ours = (AutoProcessor.from_pretrained(place) for place in (base, tmp_path / "out"))
    assert theirs.chat_template == ours.chat_template
    assert set(load_file(base / "model.safetensors")) == set(
        load_file(tmp_path / "out" / "model.safetensors")
    ), "under the names of the base"
    assert all(texts(tmp_path / "out", frames))


@pytest.mark.parametrize("family", IN_DEPTH)
def test_two_samples_are_learnt_by_heart(family, folders, frames, tmp_path):
    """Masks, end mark and describing agree: the greedy texts are the answers."""
    more = {"max_steps": 80, "learning_rate": 5e-3, "save_steps": 1000}
    options = {**more, "global_batch": 2, "per_device_train_batch_size": 2}
    main(command(folders(family), frames, tmp_path / "out", data="two.json", **options))
    assert texts(tmp_path / "out", frames) == [
        ANSWERS[0],
        load_hub(folders(family), device="cpu").escape(ANSWERS[1]),
    ]


@pytest.mark.parametrize("family", ["internvl", "gemma3"])
def test_a_killed_run_ends_as_an_undisturbed_one(family, folders, frames, tmp_path, monkeypatch):
    """Checkpoints are read back by the names in the model, which are not those of the hub."""

    class Killed(trainer.StepProgress):
        def on_step_end(self, args, state, control, **more):
            super().on_step_end(args, state, control, **more)
            if state.global_step == 3:
                raise KeyboardInterrupt

    base = folders(family)
    main(command(base, frames, tmp_path / "whole"))
    again = command(base, frames, tmp_path / "out", "--image_cache", 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "StepProgress", Killed)
        main(again)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    main(again)
    assert_same(tmp_path / "out", load_file(tmp_path / "whole" / "model.safetensors"), 1e-7)
    described = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "checkpoint-4")
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(described.state_dict()[name], value, atol=1e-7, rtol=1e-6)


def assert_same(folder, expected, atol=2e-6) -> None:
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=atol, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", *IN_DEPTH])
def test_adapters(family, folders, frames, tmp_path):
    """On every linear layer of the blocks; the projector learns as a whole, nothing else does."""
    base, out = folders(family), tmp_path / "out"
    main(command(base, frames, out, *LORA, "--image_size", 112, "--image_aspect_ratio", "pad"))
    hub = load_hub(base, device="cpu")
    before, after = hub.model.state_dict(), load_hub(out, device="cpu").model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    inside = hub.model.get_decoder()
    linear = {
        f"{name}.weight"
        for name, part in hub.model.named_modules()
        if isinstance(part, torch.nn.Linear) and ".layers." in name
        if any(part is other for other in inside.modules())
    }
    whole = tuple(f"{name}." for name in hub.projector())
    assert linear <= changed
    assert all(name.startswith(whole) for name in changed - linear)
    assert all(name in changed for name in before if name.startswith(whole))
    theirs = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(base), out / "adapter"
    ).merge_and_unload()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(value, after[name], atol=1e-6, rtol=1e-5, msg=name)
    merge_lora.main(
        ["--adapter", str(out / "adapter"), "--out", str(tmp_path / "m"), "--dtype", "float32"]
    )
    assert_same(tmp_path / "m", load_file(out / "model.safetensors"), 0)
    sizes = {"image_size": 112, "image_aspect_ratio": "pad"}
    assert read_json(out / "frames.json") == read_json(tmp_path / "m" / "frames.json") == sizes
    assert load_hub(tmp_path / "m", device="cpu").frames.size == 112


def test_accumulation_learns_as_a_large_batch(folders, frames, tmp_path):
    """The mean is over the targets of the step, whatever the shares of its parts.

    By plain steps along the gradient: AdamW makes the rounding of tiny gradients large.
    """
    base, steps = folders("smolvlm"), {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
    main(command(base, frames, tmp_path / "whole", **steps))
    options = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, **steps}
    main(command(base, frames, tmp_path / "parts", "--dataloader_num_workers", 1, **options))
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    assert_same(tmp_path / "parts", expected, 2e-5)
    before = load_file(base / "model.safetensors")
    assert max(float((expected[name] - before[name]).abs().max()) for name in before) > 1e-2


@pytest.mark.slow("stage 1 on two processes, other families")
@pytest.mark.parametrize("engine", ["ddp", "zero3_offload", "fsdp"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_two_processes_tune_as_one(family, engine, folders, frames, tmp_path):
    """By the script, with its --version; some batches of a process have no frame."""
    base, small = folders(family), flags(per_device_train_batch_size=1)
    done = run_script(named(base, frames), tmp_path / "two", engine, 2, *small)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "left out" in done.stdout
    published = ["--warmup_ratio", "0.03", "--lr_scheduler_type", "cosine"]
    main(command(base, frames, tmp_path / "one", *published))
    # AdamW makes the rounding of tiny gradients large, as those of a key's bias are.
    assert_same(tmp_path / "two", load_file(tmp_path / "one" / "model.safetensors"), 1e-5)

"""The second small base model, a Qwen2.5-VL: its folder, its pretraining, a whole tiny run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import write_world

from egogen.frames import read_rgb
from llava.checkpoints.hub_model import load_hub
from llava.tokens import IGNORE, collate
from mini.start.vllm import main
from mini.start.vllm_pretrain import (
    pretrain_language,
    pretrain_vision,
    scene_pixels,
    word_directions,
)
from mini.start.vllm_qwen import QwenBase
from mini.start.vllm_scenes import KIND_NAMES, caption, label_words, questions, read_scenes

ROOT = Path(__file__).parents[1]
QUESTION, ANSWER = "Where is the mug?", "The blue mug is at the near side left of the middle."


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def scenes(root):
    return read_scenes(root, ["ego4d"])


@pytest.fixture(scope="module")
def base(scenes, tmp_path_factory):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    texts = [text for scene in scenes for text in [*caption(scene, rng), *questions(scene, rng, 6)]]
    return QwenBase(texts, tmp_path_factory.mktemp("base"))


def asked(base, count=None, turns=(QUESTION, ANSWER)):
    """A batch of one conversation, and the places of the patches that it sees."""
    count = count or base.grid**2
    return collate([base.encode(turns, count)], base.pad_id), torch.arange(count)[None]


@torch.no_grad()
def test_pretraining_sees_what_the_model_sees_later(base, scenes):
    """Patches, tokens and positions as the processor and the model make them: one loss."""
    batch, places = asked(base)
    seen = base.see(scene_pixels(scenes[:1], base.frames))
    answer = base.hub.answer_ids([QUESTION], ANSWER)
    inputs = base.hub.encode(read_rgb(scenes[0].frame), QUESTION, answer=answer)
    ids = inputs["input_ids"]
    assert torch.equal(ids, batch["input_ids"][:, : ids.shape[1]])
    labels = torch.full_like(ids, IGNORE)
    labels[0, -len(answer) :] = torch.tensor(answer)
    assert torch.equal(labels, batch["labels"][:, : ids.shape[1]])
    own = base.model(**inputs, labels=labels).loss
    torch.testing.assert_close(base.loss(batch, seen, places), own, rtol=1e-4, atol=0)


@torch.no_grad()
def test_patches_left_out_move_nothing(base, scenes):
    """Those that are kept, and the words, have the positions of a complete image."""
    positions = []

    def keep(module, args, kwargs):
        positions.append(kwargs["position_ids"][:, 0])

    handle = base.model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    seen = base.see(scene_pixels(scenes[:1], base.frames))
    chosen = torch.tensor([[1, base.grid, base.grid**2 - 1]])
    base.loss(asked(base)[0], seen, asked(base)[1])
    base.loss(asked(base, 3)[0], seen[:, chosen[0]], chosen)
    handle.remove()
    whole, few = positions
    first = int((asked(base)[0]["input_ids"] == base.hub.image_id).int().argmax())
    assert torch.equal(few[:, first : first + 3], whole[:, first + chosen[0]])
    assert torch.equal(few[:, :first], whole[:, :first])
    assert torch.equal(few[:, first + 3 :], whole[:, first + base.grid**2 :])


def test_all_answers_of_a_conversation_are_targets(base):
    encoded = base.encode([QUESTION, ANSWER, "And the jar?", "In the left hand."], 4)
    said = [number for number in encoded.labels if number != IGNORE]
    text = base.hub.processor.tokenizer.decode(said)
    assert text == f"{ANSWER}<|im_end|>In the left hand.<|im_end|>"
    assert encoded.input_ids.count(base.hub.image_id) == 4


def test_pretraining_lowers_its_losses(base, scenes):
    pixels = scene_pixels(scenes, base.frames)
    first = pretrain_vision(base, scenes, pixels, 1, 0)
    assert pretrain_vision(base, scenes, pixels, 15, 0) < 0.8 * first
    first = pretrain_language(base, scenes, pixels, 1, 0)
    assert pretrain_language(base, scenes, pixels, 12, 0) < 0.8 * first
    assert not any(parameter.requires_grad for parameter in base.tower.parameters())
    assert all(parameter.requires_grad for parameter in base.projector.parameters())
    shapes = [directions.shape for directions in word_directions(base)]
    assert shapes == [(len(words), 96) for words in label_words()]
    assert shapes[0][0] == 1 + len(KIND_NAMES)


def run(*words):
    line = [sys.executable, *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=800)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "run"
    done = run("mini/run.py", "tiny", "--base", "qwen2_5_vl", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_tiny_run_of_both_stages(tiny):
    entries = json.loads((tiny / "described" / "ego4d_val.json").read_text())
    for actions in entries.values():
        for fields in actions.values():
            assert fields["llava_forecast_finetune"]
            feature = Path(fields["image_0"]).with_suffix(".npy")
            image, text = (
                np.load(tiny / "features" / kind / "val" / feature) for kind in ("image", "text")
            )
            assert image.shape == (144, 96) and text.shape[1] == 96
    assert json.loads((tiny / "metrics" / "metric.json").read_text())["psnr"] > 5
    assert "<html" in (tiny / "report" / "report.html").read_text()


@pytest.mark.parametrize("name", ["vllm_base", "vllm"])
def test_its_folders_work_in_plain_transformers(tiny, scenes, name):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tiny / name
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    parts = [{"type": "image", "image": str(scenes[0].frame)}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**inputs, max_new_tokens=4)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert 0 < written.shape[1] - inputs["input_ids"].shape[1] <= 4
    assert load_hub(folder, device="cpu").rows == 144
    assert processor.tokenizer.encode("zürich & \N{HOT BEVERAGE}")


def test_another_base_is_refused_in_its_folder(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    done = run("mini/run.py", "tiny", "--out", tiny)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "vllm_base/config.json: a qwen2_5_vl model, expected llava" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}


def test_a_base_of_another_class_is_made_anew(root, tmp_path, capsys):
    command = ["--dataset-root", str(root), "--name", "ego4d", "--out", str(tmp_path)]
    command += ["--vision-steps", "1", "--language-steps", "1"]
    for kind in ("qwen2_5_vl", "llava"):
        main([*command, "--base", kind])
        assert "nothing to do" not in capsys.readouterr().out
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    main(command)
    assert "nothing to do" in capsys.readouterr().out

"""Tuning: a killed run ends with the weights of an undisturbed one; bad input gets one line."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import write_split
from vllm_tiny import write_released

from egogen import layout
from egogen.errors import run_command
from egogen.jobs import SIGNALS, StoppedBySignal
from llava.train import trainer
from llava.train.train import main

STEPS = 4


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The frames of a train split, with a conversations file beside their root."""
    root = tmp_path_factory.mktemp("data")
    content = write_split(root, "ego4d", "train", clips=3)
    rows = [
        conversation(entry["image_0"], entry["llava_forecast_finetune"])
        for actions in content.values()
        for entry in actions.values()
    ]
    (root / "ego4d_conversations.json").write_text(json.dumps(rows))
    return layout.frame_folder(root, "ego4d", "train")


def conversation(image, answer="With the left hand.", **fields):
    turns = [{"from": "human", "value": "<image>\nHow?"}, {"from": "gpt", "value": answer}]
    return {"id": f"about {image}", "image": image, "conversations": turns, **fields}


def arguments(model_folder, images, output, data=None) -> list[str]:
    options = {
        "model_name_or_path": model_folder,
        "data_path": data or images.parents[2] / "ego4d_conversations.json",
        "image_folder": images,
        "output_dir": output,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "save_total_limit": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def undisturbed(model_folder, images, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    main(arguments(model_folder, images, output))
    return output


@pytest.mark.parametrize("killed_in", [1, 3])
def test_killed_tuning_ends_the_same(
    model_folder, images, undisturbed, tmp_path, monkeypatch, killed_in
):
    class Killed(trainer.StepProgress):
        def on_step_end(self, args, state, control, **more):
            super().on_step_end(args, state, control, **more)
            if state.global_step == killed_in:
                raise KeyboardInterrupt

    command = arguments(model_folder, images, tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "StepProgress", Killed)
        main(command)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    half = tmp_path / "out" / f"checkpoint-{killed_in}"  # a save that was cut off is not trusted
    half.mkdir(exist_ok=True)
    main(command)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(undisturbed / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], atol=1e-7, rtol=1e-6, msg=name)


@pytest.mark.parametrize("number", SIGNALS)
def test_told_to_stop_it_writes_a_checkpoint(
    model_folder, images, undisturbed, tmp_path, monkeypatch, number
):
    """Between its regular checkpoints; the same command goes on from there."""

    class Told(trainer.StepProgress):
        def on_step_begin(self, args, state, control, **more):
            if state.global_step == 0:
                os.kill(os.getpid(), number)

    before = [signal.getsignal(known) for known in SIGNALS]
    command = arguments(model_folder, images, tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(StoppedBySignal, match="step 1: stopped"):
        patch.setattr(trainer, "StepProgress", Told)
        main(command)
    assert (tmp_path / "out" / "checkpoint-1" / "whole.json").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert [signal.getsignal(known) for known in SIGNALS] == before
    main(command)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in load_file(undisturbed / "model.safetensors").items():
        torch.testing.assert_close(weights[name], value, atol=1e-7, rtol=1e-6, msg=name)


def test_only_language_model_and_projector_learn(model_folder, undisturbed):
    before = load_file(model_folder / "model.safetensors")
    after = load_file(undisturbed / "model.safetensors")
    for name in ("class_embedding", "patch_embedding.weight"):
        old = before[f"model.vision_tower.vision_tower.vision_model.embeddings.{name}"]
        assert torch.equal(after[f"model.vision_tower.embeddings.{name}"], old)
    for old, new in (
        ("model.mm_projector.weight", "model.multi_modal_projector.linear_1.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ):
        assert not torch.equal(before[old], after[new])


def test_finished_tuning_is_left_alone(model_folder, images, undisturbed, capsys):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    main(arguments(model_folder, images, undisturbed))
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}


def refused(capsys, command, *words) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(main, command)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert stop.value.code == 2 and len(lines) == 1, error
    assert all(word in lines[0] for word in words), lines[0]


def test_folder_of_other_settings_is_refused(model_folder, images, undisturbed, capsys):
    command = [*arguments(model_folder, images, undisturbed), "--seed", "7"]
    refused(capsys, command, "other settings")


GOOD = "ego4d-train-clip0/0/frame_000010.jpg"


@pytest.mark.parametrize(
    "rows, words",
    [
        ([], ["at least one entry"]),
        ([{"id": "a", "image": GOOD}], ["entry 0", "conversations"]),
        ([conversation(GOOD), conversation(GOOD, None)], ["entry 1", "turn 1", "value"]),
        ([conversation("../../x.jpg")], ["entry 0", "image", "../../x.jpg"]),
        ([conversation("/etc/x.jpg")], ["entry 0", "image", "/etc/x.jpg"]),
        ([conversation("a/0/none.jpg")], ["a/0/none.jpg", "no such image"]),
    ],
)
def test_bad_conversations(model_folder, images, tmp_path, capsys, rows, words):
    data = tmp_path / "conversations.json"
    data.write_text(json.dumps(rows))
    refused(capsys, arguments(model_folder, images, tmp_path / "out", data), *words)
    assert not (tmp_path / "out").exists()


def test_truncated_image(model_folder, tmp_path, capsys):
    write_split(tmp_path, "ego4d", "train", clips=1, actions=1)
    images = layout.frame_folder(tmp_path, "ego4d", "train")
    frame = images / GOOD
    frame.write_bytes(frame.read_bytes()[:200])
    data = tmp_path / "conversations.json"
    data.write_text(json.dumps([conversation(GOOD)]))
    command = arguments(model_folder, images, tmp_path / "out", data)
    refused(capsys, [*command, "--dataloader_num_workers", "1"], str(frame))
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_model_of_another_kind(images, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    refused(capsys, arguments(tmp_path / "model", images, tmp_path / "out"), "gpt2", "config.json")
    assert not (tmp_path / "out").exists()

"""Describing a split: chunks, batches and restarts change nothing; bad input gets one line."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_dataset import write_split
from vllm_tiny import write_released

from egogen import layout
from egogen.errors import EgoGenError, run_command
from egogen.features.store import open_store
from llava.checkpoints.load import load
from llava.describing import loop as description_loop
from llava.describing.decoding import Decoding
from llava.describing.job import Job
from llava.describing.llava_describer import LlavaDescriber
from llava.describing.loop import run
from llava.describing.results import (
    check_complete,
    chunk_files,
    journal_of,
    merge_results,
    read_results,
    result_file,
)
from llava.eval import run_llava_in_loop

DATASET, CLIPS, ACTIONS = "ego4d", 4, 2


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def describer(model_folder):
    loaded = load(model_folder, device="cpu")
    settings = Decoding(temperature=0.2, max_new_tokens=6)
    return LlavaDescriber(loaded, settings)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_split(root, DATASET, "val", clips=CLIPS, actions=ACTIONS)
    return root


def job(root, out, **options) -> Job:
    return Job(
        image_dir=layout.frame_folder(root, DATASET, "val"),
        action_label=layout.action_file(root, DATASET, "val"),
        dataset=DATASET,
        save_path=out / "tiny" / "val",
        feature_paths={"image": out / "image", "text": out / "text"},
        **options,
    )


def outcome(root, out):
    """Merged texts and every entry's features."""
    merged = merge_results(chunk_files(out / "tiny" / "val"))
    entries = check_complete(merged, layout.action_file(root, DATASET, "val"))
    features = [
        open_store(out / kind).read(entry.image_0)
        for entry in entries
        for kind in ("image", "text")
    ]
    return merged, features


@pytest.fixture(scope="module")
def plain(root, describer, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain")
    assert run(job(root, out), describer) == 0
    return outcome(root, out)


def assert_same(found, expected):
    assert found[0] == expected[0]
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=4e-3, rtol=2e-3)


@pytest.mark.parametrize("batch_size, chunks", [(1, 1), (8, 3), (3, 2)])
def test_batches_and_chunks_change_nothing(root, describer, plain, tmp_path, batch_size, chunks):
    for index in range(1, chunks + 1):
        run(
            job(root, tmp_path, batch_size=batch_size, num_chunks=chunks, chunk_idx=index),
            describer,
        )
    assert_same(outcome(root, tmp_path), plain)


def test_another_seed_gives_other_texts(root, describer, plain, tmp_path):
    run(job(root, tmp_path, seed=7), describer)
    assert outcome(root, tmp_path)[0] != plain[0]


def test_killed_run_continues(root, describer, plain, tmp_path, monkeypatch):
    """Killed in the third batch, between the features and the texts."""
    batches = 0

    def dying_append(*arguments):
        nonlocal batches
        batches += 1
        if batches == 3:
            raise KeyboardInterrupt
        return real_append(*arguments)

    real_append = description_loop.append_results
    monkeypatch.setattr(description_loop, "append_results", dying_append)
    with pytest.raises(KeyboardInterrupt):
        run(job(root, tmp_path, batch_size=2), describer)
    monkeypatch.setattr(description_loop, "append_results", real_append)
    path = result_file(tmp_path / "tiny" / "val", 1)
    assert path.read_text() == "{}\n" and len(journal_of(path).read_text().splitlines()) == 4
    assert len(read_results(path)) == 2
    damaged = next((tmp_path / "text").rglob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:40])  # a half-written feature is made anew
    run(job(root, tmp_path, batch_size=2), describer)
    assert not journal_of(path).exists()
    assert_same(outcome(root, tmp_path), plain)


def test_finished_work_is_left_alone(root, describer, tmp_path, monkeypatch):
    run(job(root, tmp_path), describer)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}
    monkeypatch.setattr(describer, "describe", lambda *a, **k: pytest.fail("described again"))
    assert run(job(root, tmp_path), describer) == 0
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*") if p.is_file()}


def test_features_of_another_model_are_refused(root, describer, tmp_path):
    run(job(root, tmp_path), describer)
    with pytest.raises(EgoGenError, match="seed 42, expected 43"):
        run(job(root, tmp_path, seed=43), describer)


RECORD = {
    "num_chunks": 1,
    "model": "230afc0445065179",
    "width": 64,
    "image_size": 224,
    "quantization": None,
    "query": "How does the person properly {} that is displayed in the video frame?",
    "label_style": "parsed",
    "seed": 42,
    "temperature": 0.2,
    "top_k": 50,
    "max_new_tokens": 6,
    "sampling": "per-sample",
}


def test_folders_of_earlier_versions_are_continued(root, describer, tmp_path):
    """Their records, literally; but not where they drew all samples from one stream."""
    folder = tmp_path / "tiny" / "val"
    folder.mkdir(parents=True)
    (folder / "made_by.json").write_text(json.dumps(RECORD))
    assert run(job(root, tmp_path), describer) == 0
    written = {k: v for k, v in RECORD.items() if k != "num_chunks"}
    shape = {"layout": "released", "dtype": "float16"}
    image = {"kind": "image", "rows": 256, **shape, **written}
    assert json.loads((tmp_path / "image" / "feature_info.json").read_text()) == image
    text = {"kind": "text", **shape, **written}
    assert json.loads((tmp_path / "text" / "feature_info.json").read_text()) == text
    (folder / "made_by.json").write_text(json.dumps({**RECORD, "sampling": "released"}))
    with pytest.raises(EgoGenError, match="sampling 'released', expected 'per-sample'"):
        run(job(root, tmp_path), describer)


def test_merge_refuses_gaps_and_doubles(root, describer, tmp_path):
    for index in (1, 2, 3):
        run(job(root, tmp_path, num_chunks=3, chunk_idx=index), describer)
    folder = tmp_path / "tiny" / "val"
    second = folder / "tiny_2.json"
    content = second.read_text()
    second.unlink()
    with pytest.raises(EgoGenError, match="chunks 2 are missing"):
        chunk_files(folder)
    second.write_text((folder / "tiny_1.json").read_text())
    with pytest.raises(EgoGenError, match="stand twice"):
        merge_results(chunk_files(folder))
    partial = json.loads(content)
    del partial[next(iter(partial))]
    second.write_text(json.dumps(partial))
    with pytest.raises(EgoGenError, match="entries are not described"):
        check_complete(merge_results(chunk_files(folder)), layout.action_file(root, DATASET, "val"))


def command(capsys, model_folder, root, out, *more) -> tuple[int, str]:
    """Exit code and error output of the documented command."""
    arguments = {
        "--model-path": model_folder,
        "--image-dir": layout.frame_folder(root, DATASET, "val"),
        "--action-label": layout.action_file(root, DATASET, "val"),
        "--save-path": out / "tiny" / "val",
        "--save-image-feature-path": out / "image",
        "--save-text-feature-path": out / "text",
        "--max-new-tokens": 2,
        "--device": "cpu",
    }
    arguments.update(zip(more[::2], more[1::2], strict=True))
    with pytest.raises(SystemExit) as stop:
        run_command(
            run_llava_in_loop.main, [str(part) for pair in arguments.items() for part in pair]
        )
    return stop.value.code, capsys.readouterr().err


def assert_refused(result, out, *words):
    code, error = result
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1, error
    assert all(word in lines[0] for word in words), lines[0]
    assert not list(out.rglob("*.npy")) and not list(out.rglob("*.json"))


def test_empty_action_file(capsys, model_folder, root, tmp_path):
    empty = tmp_path / "input" / "ego4d_val.json"
    empty.parent.mkdir()
    empty.write_text("{}")
    out = tmp_path / "out"
    result = command(capsys, model_folder, root, out, "--action-label", empty)
    assert_refused(result, out, "ego4d_val.json")


def test_path_that_leaves_the_frames(capsys, model_folder, root, tmp_path):
    path = tmp_path / "input" / "ego4d_val.json"
    path.parent.mkdir()
    entry = {"image_0": "../../x.jpg", "image_1": "a/0/y.jpg", "action": "#C C cuts the apple"}
    path.write_text(json.dumps({"a": {"0": entry}}))
    out = tmp_path / "out"
    result = command(capsys, model_folder, root, out, "--action-label", path)
    assert_refused(result, out, "ego4d_val.json", "../../x.jpg")


@pytest.mark.parametrize("option, value", [("--chunk-idx", 0), ("--batch-size", 0)])
def test_numbers_out_of_range(capsys, model_folder, root, tmp_path, option, value):
    result = command(capsys, model_folder, root, tmp_path, option, value)
    assert_refused(result, tmp_path, "0")


def test_as_released_means_the_labels():
    required = ["--model-path", "m", "--image-dir", "i", "--action-label", "a", "--save-path", "s"]
    plain = run_llava_in_loop.parse(required)
    assert plain.label_style == "parsed"
    flipped = run_llava_in_loop.parse([*required, "--as-released"])
    assert flipped.label_style == "released"
    changed = {name for name, value in vars(flipped).items() if value != vars(plain)[name]}
    assert changed == {"label_style", "as_released"}
    with pytest.raises(SystemExit):
        run_llava_in_loop.parse([*required, "--sampling", "released"])


def test_truncated_frame_is_named_and_the_rest_is_done(capsys, model_folder, tmp_path):
    write_split(tmp_path, DATASET, "val")
    frames = layout.frame_folder(tmp_path, DATASET, "val")
    frame = sorted(frames.rglob("*10.jpg"))[0]
    frame.write_bytes(frame.read_bytes()[:300])
    code, error = command(capsys, model_folder, tmp_path, tmp_path / "out")
    assert code == 1 and str(frame) in error
    assert len(list((tmp_path / "out" / "text").rglob("*.npy"))) == 3
    write_split(tmp_path, DATASET, "val")  # mended: the same command completes the work
    assert command(capsys, model_folder, tmp_path, tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out" / "text").rglob("*.npy"))) == 4


def copied(model_folder, folder, config=None, weights=None):
    folder.mkdir()
    for path in model_folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "vision_tower").mkdir()
    tower = model_folder / "vision_tower" / "config.json"
    (folder / "vision_tower" / "config.json").write_bytes(tower.read_bytes())
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if weights is not None:
        state = load_file(model_folder / "model.safetensors")
        save_file(weights(state), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_checkpoint_of_another_kind(capsys, model_folder, root, tmp_path):
    folder = copied(model_folder, tmp_path / "bert", config={"model_type": "bert"})
    out = tmp_path / "out"
    assert_refused(command(capsys, folder, root, out), out, "bert", "config.json")


def without_norm(state):
    return {name: value for name, value in state.items() if name != "model.norm.weight"}


def reshaped(state):
    return {**state, "lm_head.weight": torch.zeros(600, 32)}


@pytest.mark.parametrize(
    "weights, words",
    [
        (without_norm, ["missing: model.language_model.norm.weight"]),
        (reshaped, ["mis-shaped: lm_head"]),
    ],
)
def test_checkpoint_with_wrong_weights(capsys, model_folder, root, tmp_path, weights, words):
    folder = copied(model_folder, tmp_path / "wrong", weights=weights)
    out = tmp_path / "out"
    assert_refused(command(capsys, folder, root, out), out, str(folder), *words)

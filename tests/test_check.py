"""`python -m egogen.check`: a sound dataset passes; everything wrong is named, and all of it."""

import json

import numpy as np
import pytest
from small_dataset import write_dataset, write_features

from egogen import layout
from egogen.check import main
from egogen.errors import run_command


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "data")


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def run(capsys, *arguments):
    """-> exit code, problem lines, everything printed."""
    with pytest.raises(SystemExit) as stopped:
        run_command(main, [str(argument) for argument in (*arguments, "--workers", 1)])
    printed = capsys.readouterr()
    text = printed.out + printed.err
    lines = [line for line in printed.out.splitlines() if line.startswith("problem: ")]
    return stopped.value.code, lines, text


def test_a_sound_dataset_passes_and_is_counted(root, tmp_path, capsys):
    image, text = tmp_path / "image", tmp_path / "text"
    write_features(root, "ego4d", "val", image, text)
    code, lines, out = run(
        capsys, root, "--image-features", f"val={image}", "--text-features", f"ego4d/val={text}"
    )
    assert code == 0 and not lines
    table = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    # entries, clips with metadata, descriptions, frames, targets, image and text features, problems
    assert table["ego4d train"][2:] == ["4", "2", "4", "8", "-", "-", "-", "0"]
    assert table["ego4d val"][2:] == ["4", "2", "4", "8", "4", "4", "4", "0"]
    assert "files" in out  # progress


def test_worker_processes_find_the_same(root, capsys):
    frames = layout.frame_folder(root, "ego4d", "val")
    (frames / "ego4d-val-clip0/1/frame_000020.jpg").unlink()
    with pytest.raises(SystemExit) as stopped:
        run_command(main, [str(root), "--workers", "2"])
    assert stopped.value.code == 1
    assert "clip0/1/frame_000020.jpg: no such image" in capsys.readouterr().out


def test_every_problem_is_named_in_one_run(root, tmp_path, capsys):
    image, text = tmp_path / "image", tmp_path / "text"
    write_features(root, "ego4d", "val", image, text)
    frames = layout.frame_folder(root, "ego4d", "val")
    clip = "ego4d-val-clip0"
    (frames / clip / "0/frame_000010.jpg").unlink()
    truncated = frames / clip / "0/frame_000020.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-300])
    (layout.frame_folder(root, "ego4d", "val_gt_for_metric") / clip / "1/frame_000020.jpg").unlink()
    features = [sorted(folder.rglob("*.npy")) for folder in (image, text)]
    np.save(features[0][0], np.zeros((255, 8), np.float16))
    np.save(features[0][1], np.full((256, 8), np.nan, np.float16))
    np.save(features[0][2], np.zeros((256, 9), np.float16))
    features[1][0].unlink()
    features[1][1].write_bytes(b"\x80\x04 not numpy")
    metadata = layout.metadata_file(root, "ego4d")
    edit_json(metadata, lambda content: content.pop("ego4d-val-clip1"))

    def change(content):
        content[clip]["1"]["llava_forecast_finetune"] = "  "
        content["ego4d-val-clip1"]["0"].pop("llava_forecast_finetune")
        content["ego4d-val-clip1"]["1"]["image_1"] = content["ego4d-val-clip1"]["0"]["image_1"]
        content["ego4d-val-clip1"]["2"] = {"image_0": "a/b.jpg", "image_1": "../../etc/passwd"}
        content["ego4d-val-clip1"]["3"] = {"image_0": "a/b.jpg", "action": "x", "image_1": "../c"}
        content["odd"] = ["not", "an", "object"]

    edit_json(layout.action_file(root, "ego4d", "val"), change)
    code, lines, out = run(
        capsys, root, "--split", "val", "--image-features", image, "--text-features", text
    )
    assert code == 1
    expected = [
        ("entry ego4d-val-clip1/2", "field 'action' is missing"),
        ("entry ego4d-val-clip1/3", "leaves the dataset root"),
        ("clip 'odd'", "expected an object of actions"),
        ("entry ego4d-val-clip0/1", "no description"),
        ("entry ego4d-val-clip1/0", "no description"),
        ("entry ego4d-val-clip1/1", "used twice"),
        ("ego4d_metadata.json", "no metadata of clip 'ego4d-val-clip1'"),
        ("clip0/0/frame_000010.jpg", "no such image"),
        ("clip0/0/frame_000020.jpg", "unreadable image"),
        ("val_gt_for_metric", "clip0/1/frame_000020.jpg: no such image"),
        (features[0][0].name, "shape (255, 8), expected (256, d)"),
        ("clip0/1", "holds NaN"),
        ("clip1/0", "has width 9, expected 8"),
        ("text", "no such feature file"),
        ("text", "not a readable .npy"),
    ]
    for parts in expected:
        assert any(all(part in line for part in parts) for line in lines), parts
    assert len(lines) == len(expected)
    assert f"problems: {len(expected)}" in out


@pytest.mark.parametrize("case", ["no root", "nothing there", "no dataset", "empty", "no split"])
def test_nothing_to_check_is_exit_2_and_one_line(root, tmp_path, capsys, case):
    arguments = [root]
    if case == "no root":
        arguments = [tmp_path / "none"]
    elif case == "nothing there":
        arguments = [tmp_path]
    elif case == "no dataset":
        arguments = [root, "--dataset", "epickitchen", "--split", "val"]
    elif case == "empty":
        layout.action_file(root, "ego4d", "val").write_text("{}")
    else:
        layout.action_file(root, "ego4d", "val").unlink()
    code, _, out = run(capsys, *arguments)
    assert code == 2
    named = [line for line in out.splitlines() if line.startswith(("problem: ", "error: "))]
    assert len(named) == 1 and "Traceback" not in out


def test_a_feature_folder_must_fit_one_split(root, tmp_path, capsys):
    code, _, out = run(capsys, root, "--image-features", tmp_path)
    assert code == 2 and "fits 2 of the splits" in out
    code, _, out = run(capsys, root, "--split", "val", "--text-features", tmp_path / "none")
    assert code == 2 and "no such folder" in out


def test_an_equals_sign_may_stand_in_a_feature_folder(root, tmp_path, capsys):
    """SPLIT=DIR only where what stands before the first = is a split."""
    image, text = tmp_path / "lr=1e-4" / "val", tmp_path / "train=x" / "si=1.5"
    write_features(root, "ego4d", "val", image, text)
    for more in ((image, text), (f"val={image}", f"ego4d/val={text}")):
        words = ("--split", "val", "--image-features", more[0], "--text-features", more[1])
        code, lines, _ = run(capsys, root, *words)
        assert code == 0 and not lines
    code, _, out = run(capsys, root, "--image-features", f"test={image}")
    assert code == 2 and "fits 2 of the splits" in out


def test_a_number_that_is_none_is_named_by_file_and_entry(root, capsys):
    path = layout.action_file(root, "ego4d", "val")
    path.write_text(path.read_text().replace('"action":', '"score": 1e999, "action":', 1))
    code, lines, _ = run(capsys, root)
    assert code == 2 and len(lines) == 1
    assert f"{path}: entry ego4d-val-clip0/0/score: 1e999, expected a finite number" in lines[0]

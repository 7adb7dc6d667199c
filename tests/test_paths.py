"""Paths and values are taken as they are written: overrides, links, long names, other folders."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_dataset import write_dataset

from egogen import EgoGenError, layout
from egogen.actions import inside, read_clip_sizes, safe_relative
from egogen.atomic import as_umask_says, atomic_path, write_text
from egogen.check import check_split
from egogen.frames import read_rgb
from ldm.config import GenerateConfig, TrainConfig, load_config
from ldm.images import write_image
from ldm.networks.architecture import load_tokenizer
from ldm.split import open_training
from metrics.frame_pairs import find_pairs

PROJECT = Path(__file__).resolve().parents[1]
MINI = str(PROJECT / "configs" / "generate_mini.yaml")


@pytest.mark.parametrize(
    "value",
    ["val #2", "0755", "[draft]/val", "a: b/x", "@home", "~", "true", "'a b'", "{a: b}", "a=b=c"],
)
@pytest.mark.parametrize(
    "key",
    [
        "data.params.data_path",
        "data.params.edit_path",
        "data.params.additional_cond_path.llava_image",
        "data.metadata_path",
        "data.params.text_prompt_key",
        "model.params.ckpt_path",
    ],
)
def test_a_text_or_a_path_is_taken_as_it_stands(key, value):
    config = load_config(GenerateConfig, [MINI], [f"{key}={value}"])
    found = {
        "data.params.data_path": config.data.data_path,
        "data.params.edit_path": config.data.edit_path,
        "data.params.additional_cond_path.llava_image": config.data.features["image"],
        "data.metadata_path": config.metadata_path,
        "data.params.text_prompt_key": config.data.text_prompt_key,
        "model.params.ckpt_path": config.model.ckpt_path,
    }
    assert found[key] == value


def test_other_values_are_yaml(monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/a b")
    config = load_config(
        TrainConfig,
        [],
        [
            "--data.params.train.params.data_path=[a, b #2]".replace(" #2", ""),
            "data.params.train.params.edit_path=${oc.env:SOMEWHERE}/x",
            "data.params.cache_path=null",
            "inference.steps=3 # few",
            "inference.scales_img=[1, 2.0]",
            "data.params.train.params.feature_path.image=null",
        ][:5],
    )
    assert config.data.train.data_path == ["a", "b"] and config.data.cache_path is None
    assert config.data.train.edit_path == "/a b/x"
    assert (config.inference.steps, config.inference.scales_img) == (3, [1, 2.0])


@pytest.mark.parametrize(
    "override",
    ["inference.steps=[1", "data.params.data_path=${x", "=3", "data.params.data_path=???"],
)
def test_what_is_no_value_is_one_line(override):
    with pytest.raises(EgoGenError, match="command line: '.*expected key=value|not a value for"):
        load_config(GenerateConfig, [MINI], [override])


@pytest.mark.parametrize("value", ["0755", "{a: b}", "[a, 3]", "[a, null]"])
def test_a_config_whose_path_is_none_is_refused(tmp_path, value):
    (tmp_path / "a.yaml").write_text(f"data: {{params: {{data_path: {value}}}}}")
    with pytest.raises(EgoGenError, match="config: data.params.data_path=.*: expected a path"):
        load_config(GenerateConfig, [str(tmp_path / "a.yaml")])


def test_a_path_that_is_unset_is_missed():
    with pytest.raises(EgoGenError, match=r"data.params.train.params.data_path \(not set\)"):
        open_training(load_config(TrainConfig, [], ["data.params.train.params.data_path=null"]))


def test_paths_of_a_config_are_found_beside_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    version = load_config(GenerateConfig, [MINI]).model.text_encoder.version
    assert load_tokenizer(version)
    train = load_config(TrainConfig, [str(PROJECT / "configs" / "train_mini.yaml")])
    assert train.model.ckpt_path == str(PROJECT / "configs" / "mini" / "start.safetensors")
    place = "model.params.cond_stage_config.params.version"
    (tmp_path / "configs" / "mini" / "text_tower").mkdir(parents=True)  # here it is here
    assert (
        load_config(GenerateConfig, [MINI]).model.text_encoder.version == "configs/mini/text_tower"
    )
    shutil.rmtree(tmp_path / "configs")
    typed = load_config(GenerateConfig, [MINI], [f"{place}=configs/mini/text_tower"])
    for name in (typed.model.text_encoder.version, "/none/tower", "./tower", "a/b/c"):
        with pytest.raises(EgoGenError, match=f"version={name}: no such folder"):
            load_tokenizer(name)


def test_names_are_judged_and_links_are_followed(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path)
    assert inside(tmp_path / "root", "link/x.jpg") == tmp_path / "root/link/x.jpg"
    for value, said in {
        "../x.jpg": "leaves",
        "/etc/x.jpg": "leaves",
        "a/../../x.jpg": "leaves",
        "": "expected a relative path",
        ".": "expected a relative path",
        "a\\b.jpg": "without backslash",
        "a\0.jpg": "zero byte",
        f"{'台' * 86}.jpg": "at most 255 bytes",
    }.items():
        with pytest.raises(EgoGenError, match=said) as caught:
            safe_relative(value, "x")
        assert ("leaves" in str(caught.value)) == (said == "leaves")


def test_a_dataset_of_links_is_like_its_copy(tmp_path):
    """Files that are links into a store, and a clip whose folder lies elsewhere."""
    root = write_dataset(tmp_path / "data", splits=("val",))
    frames, store = layout.frame_folder(root, "ego4d", "val"), tmp_path / "store"
    store.mkdir()
    shutil.move(frames / "ego4d-val-clip0", store / "clip")
    (frames / "ego4d-val-clip0").symlink_to(store / "clip")
    for number, path in enumerate(sorted(root.rglob("*.*"))):
        shutil.move(path, store / str(number))
        path.symlink_to(store / str(number))
    report = check_split(root, "ego4d", "val", workers=1)
    assert not report.problems and report.good["frames"] == 8
    truth = layout.frame_folder(root, "ego4d", layout.GROUND_TRUTH)
    shutil.copytree(truth, tmp_path / "made", symlinks=True)
    (store / "more").mkdir()
    Image.new("RGB", (8, 8)).save(store / "more" / "frame.jpg")
    (tmp_path / "made" / "clip9").symlink_to(store / "more")
    (tmp_path / "made" / "loop").symlink_to(tmp_path / "made")
    found = find_pairs(tmp_path / "made", truth, layout.action_file(root, "ego4d", "val"))
    assert len(found.pairs) == 4 and not found.problems
    assert len(found.notes) == 1 and "clip9/frame.jpg" in found.notes[0]


@pytest.mark.parametrize("name", ["x" * 251 + ".jpg", "台" * 83 + ".png", "x." + "y" * 253])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path, name):
    write_text(tmp_path / name, "x")
    if name[-4:] in (".jpg", ".png"):
        with atomic_path(tmp_path / name) as temporary:
            Image.new("RGB", (2, 2)).save(temporary)
        assert read_rgb(tmp_path / name).size == (2, 2)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_have_the_mode_that_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        (tmp_path / "folder" / "below").mkdir(parents=True)
        (tmp_path / "folder" / "below" / "b").touch(mode=0o600)
        as_umask_says(tmp_path / "folder")
    finally:
        os.umask(before)
    for path in (tmp_path / "a.safetensors", tmp_path / "folder" / "below" / "b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_stdout_shows_what_it_lacks_with_backslashes():
    code = "from egogen.errors import run_command; run_command(lambda _: print('\\xf6 \\u53f0'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, text=True, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, "\\xf6 \\u53f0\n"), done.stderr


def test_main_takes_its_own_project_first(tmp_path):
    """Another checkout on PYTHONPATH, and a Python that leaves the script's folder out."""
    (tmp_path / "egogen").mkdir()
    (tmp_path / "egogen" / "__init__.py").write_text("raise SystemExit('another checkout')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    words = [sys.executable, str(PROJECT / "main.py"), "--help"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["frame", "frame.20", "frame.psd", "frame.PNG", "frame.jpeg"])
def test_a_generated_frame_may_have_any_name(tmp_path, name):
    write_image(tmp_path / name, Image.new("RGB", (8, 8), "red"), 95)
    assert read_rgb(tmp_path / name).getpixel((1, 1))[0] > 250


@pytest.mark.parametrize("size", [(0.5, 2), (1, 101), (70_000, 70_000), (True, 5)])
def test_sizes_of_clips_that_no_frame_can_have(tmp_path, size):
    sides = f'{{"width": {str(size[0]).lower()}, "height": {size[1]}}}'
    (tmp_path / "m.json").write_text(f'{{"clip": {sides}}}')
    with pytest.raises(EgoGenError, match="clip 'clip': expected positive 'width' and 'height'"):
        read_clip_sizes(tmp_path / "m.json")

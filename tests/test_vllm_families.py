"""Every family of image-text models goes through stage 1's command, the merge and stage 2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import model_families
import numpy as np
import pytest
import torch
import yaml
from bad_input_world import script
from model_families import FAMILIES
from model_parts import WIDTH
from PIL import Image
from small_dataset import picture
from small_model import params_of, random_weights, write_config
from small_training import losses, train_run, write_run

from egogen import layout
from egogen.actions import read_actions
from egogen.errors import EgoGenError
from egogen.features.store import open_store, read_info
from ldm.checkpoints.layouts import to_own
from ldm.config import GenerateConfig, load_config
from lego.stages import Stages
from llava.describing import loop
from llava.describing.job import Decoding
from llava.eval import make_features, run_llava_in_loop
from metrics.inference import main as inference

ROWS = {"llava": 16, "llava_onevision": 36, "gemma4": 64}  # of a frame; others 4
SIZES = [(40, 90), (200, 30), (7, 5), (64, 64)]  # upright, wide, tiny, square
merge = script("vllm/scripts/merge_inference_results.py")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset with frames of unlike sizes, and what stage 2 needs besides its features."""
    root = tmp_path_factory.mktemp("world")
    overrides = write_run(root)
    label = layout.action_file(root, "ego4d", "val")
    content = json.loads(label.read_text())
    entries = [entry for actions in content.values() for entry in actions.values()]
    for number, (entry, size) in enumerate(zip(entries, SIZES, strict=True)):
        frame = layout.frame_folder(root, "ego4d", "val") / entry["image_0"]
        picture(number, size).save(frame)
        entry["action"] += " <image> <|image_pad|> <eos> <|im_end|>" * (number == 1)
    label.write_text(json.dumps(content))
    return root, overrides


def words(root: Path, model: Path, out: Path) -> list[str]:
    frames = layout.frame_folder(root, "ego4d", "val")
    line = f"--model-path {model} --image-dir {frames} --device cpu --save-image-feature-path "
    return f"{line}{out}/image --save-text-feature-path {out}/text".split()


def describe(root: Path, model: Path, out: Path, *more: str) -> int:
    label = layout.action_file(root, "ego4d", "val")
    asked = [*words(root, model, out), "--action-label", str(label), "--save-path", str(out / "t")]
    asked += ["--temperature", "1.0", "--max-new-tokens", "5", *more]
    return run_llava_in_loop.main(asked)


def merged(root: Path, out: Path) -> dict:
    """The action file with its texts, as merge writes it."""
    label = layout.action_file(root, "ego4d", "val")
    asked = [out / "t", "--output", out / "m.json", "--action-label", label]
    merge([str(word) for word in [*asked, "--actions-output", out / "ego4d_val.json"]])
    return json.loads((out / "ego4d_val.json").read_text())


def features(root: Path, out: Path) -> dict[str, np.ndarray]:
    entries = read_actions(layout.action_file(root, "ego4d", "val"))
    kinds = [(kind, entry.image_0) for kind in ("image", "text") for entry in entries]
    return {f"{kind} {name}": open_store(out / kind).read(name) for kind, name in kinds}


@pytest.fixture(scope="module", params=FAMILIES)
def described(request, world, tmp_path_factory):
    """Family, model and the folder with its texts and features, all in one batch."""
    folder = tmp_path_factory.mktemp(request.param)
    model = model_families.write(request.param, folder / "model")
    assert describe(world[0], model, folder / "out") == 0
    return request.param, model, folder / "out"


def test_batches_chunks_and_layouts_change_nothing(described, world, tmp_path):
    family, model, out = described
    root, _ = world
    for chunk in ("1", "2"):
        more = ["--batch-size", "1", "--num-chunks", "2", "--chunk-idx", chunk]
        assert describe(root, model, tmp_path, *more, "--feature-layout", "compact") == 0
    assert merged(root, tmp_path) == merged(root, out)
    one, other = features(root, out), features(root, tmp_path)
    for name, rows in one.items():
        np.testing.assert_allclose(rows, other[name], atol=1e-2, rtol=4e-3)
    rows = ROWS.get(family, 4)
    image = [values for name, values in one.items() if name.startswith("image")]
    assert {values.shape for values in image} == {(rows, WIDTH)}
    assert min(abs(image[0] - other).max() for other in image[1:]) > 0.05
    info = read_info(out / "image")
    assert (info["width"], info["rows"]) == (WIDTH, rows)
    entry = read_actions(layout.action_file(root, "ego4d", "val"))[0]
    assert open_store(tmp_path / "image").shape(entry.image_0) == (rows, WIDTH)


def test_stage_2_trains_on_the_features(described, world, tmp_path):
    family, _, out = described
    root, overrides = world
    merged(root, out)
    more = [f"model.params.conditioner.feature_dim={WIDTH}", "lightning.trainer.max_steps=2"]
    more += [f"model.params.conditioner.image_rows={ROWS.get(family, 4)}"]
    frames = layout.frame_folder(root, "ego4d", "val")
    for part in ("train", "validation"):
        start = f"data.params.{part}.params."
        more += [f"{start}data_path={frames}", f"{start}edit_path={out}/ego4d_val.json"]
        more += [f"{start}additional_cond_path.llava_{k}={out}/{k}" for k in ("image", "text")]
    more += ["lightning.trainer.check_val_every_n_epoch=100", "lightning.checkpoint_every=2"]
    folder = train_run(overrides, tmp_path, family, *more)
    found = losses(folder)
    assert [step for step, kind in found if kind == "loss"] == [1, 2]
    assert np.isfinite(list(found.values())).all()
    if family == FAMILIES[0]:
        make_a_frame(root, folder, out, tmp_path)


def make_a_frame(root: Path, folder: Path, out: Path, tmp_path: Path) -> None:
    """The documented command on the first entry, with the checkpoint of the run in `folder`."""
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    clip, actions = next(iter(merged(root, out).items()))
    (tmp_path / "one.json").write_text(json.dumps({clip: {"0": actions["0"]}}))
    data = saved["data"]["params"]["validation"]["params"]
    del data["flip_prob"]
    data["edit_path"] = f"{tmp_path}/one.json"
    data = {"metadata_path": f"{root}/ego4d_metadata.json", "params": data}
    config = tmp_path / "generate.yaml"
    config.write_text(yaml.safe_dump({"model": saved["model"], "data": data}))
    path = folder / "checkpoints" / "last.ckpt"
    assert inference(["--config", str(config), "--ckpt", str(path), "inference.steps=1"]) == 0
    (frame,) = path.with_suffix("").rglob("*.jpg")
    assert Image.open(frame).width > 0


def test_features_are_made_of_the_texts(described, world, tmp_path):
    """Image features are those of describing; a text has a row for each of its tokens."""
    _, model, out = described
    root, _ = world
    merged(root, out)
    asked = [*words(root, model, tmp_path), "--descriptions", str(out / "ego4d_val.json")]
    assert make_features.main(asked) == 0
    found, before = features(root, tmp_path), features(root, out)
    for name, rows in before.items():
        if name.startswith("image"):
            np.testing.assert_allclose(found[name], rows, atol=4e-3, rtol=4e-3)
        assert found[name].shape[1] == WIDTH and len(found[name]) >= 2


@pytest.fixture(scope="module")
def qwen(world, tmp_path_factory):
    """A model, and the folder that it has described."""
    folder = tmp_path_factory.mktemp("qwen")
    model = model_families.write("qwen2_5_vl", folder / "model")
    assert describe(world[0], model, folder / "out") == 0
    return model, folder / "out"


def test_a_killed_run_continues(qwen, world, tmp_path, monkeypatch):
    model, out = qwen
    root, _ = world
    real, batches = loop.append_results, []

    def dying(*arguments):
        batches.append(1)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "append_results", dying)
        with pytest.raises(KeyboardInterrupt):
            describe(root, model, tmp_path, "--batch-size", "1")
    assert describe(root, model, tmp_path) == 0
    assert merged(root, tmp_path) == merged(root, out)


def test_greedy_and_another_seed(qwen, world, tmp_path):
    model, out = qwen
    root, _ = world
    texts = [merged(root, out)]
    for name, more in (("a", ["--seed", "5"]), ("b", ["--temperature", "0"])):
        assert describe(root, model, tmp_path / name, *more) == 0
        texts.append(merged(root, tmp_path / name))
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_folders_of_another_origin_are_not_continued(qwen, world, tmp_path):
    model, out = qwen
    root, _ = world
    assert read_info(out / "image")["image_size"] == 448
    with pytest.raises(EgoGenError, match="image_size 448, expected 84"):
        describe(root, model, out, "--image-size", "84")
    other = model_families.write("qwen2_5_vl", tmp_path / "other", seed=1)
    with pytest.raises(EgoGenError, match="made with model '"):
        describe(root, other, out)
    tuned = shutil.copytree(model, tmp_path / "tuned")
    (tuned / "frames.json").write_text('{"image_size": 448, "image_aspect_ratio": "pad"}')
    with pytest.raises(EgoGenError, match="image_aspect_ratio 'square', expected 'pad'"):
        describe(root, tuned, out)


def test_a_size_gives_all_frames_its_rows(world, tmp_path):
    """A processor without an upper limit: 3 x 3 rows of 28 pixels."""
    model = model_families.write("qwen2_5_vl", tmp_path / "model")
    path = model / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["size"]["longest_edge"] = 10**7
    path.write_text(json.dumps(settings))
    root, _ = world
    assert describe(root, model, tmp_path, "--image-size", "84") == 0
    shapes = {v.shape for k, v in features(root, tmp_path).items() if k.startswith("image")}
    assert shapes == {(9, WIDTH)} and read_info(tmp_path / "image")["rows"] == 9


def test_a_log_has_no_warnings(world, tmp_path):
    """Of sampling flags that the folder has, of kernels that are not installed."""
    model = model_families.write("qwen3_5", tmp_path / "model")
    label = layout.action_file(world[0], "ego4d", "val")
    command = [
        sys.executable,
        "-m",
        "llava.eval.run_llava_in_loop",
        *words(world[0], model, tmp_path),
    ]
    command += ["--action-label", str(label), "--save-path", str(tmp_path), "--max-new-tokens", "2"]
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "vllm")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if not line.startswith("describe: ")]


def test_one_photograph(qwen, tmp_path):
    """Both stages in one process; features of another width are refused."""
    model, _ = qwen
    for rows in (4, 5):
        config = write_config(tmp_path / str(rows))
        wanted = [
            f"model.params.conditioner.{key}"
            for key in (f"feature_dim={WIDTH}", f"image_rows={rows}")
        ]
        weights = random_weights(params_of(config, *wanted), ("unet", "conditioner"))
        torch.save({"state_dict": to_own(weights)}, tmp_path / "frame.ckpt")
        options = {
            "vllm": model,
            "ldm": tmp_path / "frame.ckpt",
            "config": load_config(GenerateConfig, [str(config)], [*wanted, "inference.steps=1"]),
            "settings": Decoding(1.0, 50, 4),
            "device": torch.device("cpu"),
        }
        stages = Stages(**options)
        if rows == 4:
            (found,) = stages.frames([picture(3)], ["pick up the mug"])
        else:
            with pytest.raises(EgoGenError, match="rows 4, but the config .*rows=5"):
                stages.frames([picture(3)], ["pick up the mug"])
    assert found.description and found.image.size[0] > found.image.size[1]

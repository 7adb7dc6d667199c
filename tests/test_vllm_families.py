"""Every family of image-text models goes through stage 1's command, the merge and stage 2."""

import json
from pathlib import Path

import model_families
import numpy as np
import pytest
import yaml
from bad_input_world import script
from model_families import FAMILIES
from model_parts import WIDTH
from PIL import Image
from small_dataset import picture
from small_training import losses, train_run, write_run

from egogen import layout
from egogen.actions import read_actions
from egogen.errors import EgoGenError
from egogen.features.store import open_store, read_feature, read_info
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
    return {f"{kind} {name}": read_feature(out / kind, name) for kind, name in kinds}


@pytest.fixture(scope="module", params=FAMILIES)
def described(request, world, tmp_path_factory):
    """Family, model and the folder with its texts and features, all in one batch."""
    folder = tmp_path_factory.mktemp(request.param)
    model = model_families.write(request.param, folder / "model")
    assert describe(world[0], model, folder / "out") == 0
    return request.param, model, folder / "out"


def test_batches_chunks_and_layouts_change_nothing(described, world, tmp_path, capfd):
    family, model, out = described
    root, _ = world
    for chunk in ("1", "2"):
        more = ["--batch-size", "1", "--num-chunks", "2", "--chunk-idx", chunk]
        assert describe(root, model, tmp_path, *more, "--feature-layout", "compact") == 0
    said = capfd.readouterr().err.splitlines()
    assert not [line for line in said if not line.startswith("describe: ")]
    assert merged(root, tmp_path) == merged(root, out)
    one, other = features(root, out), features(root, tmp_path)
    for name, rows in one.items():
        np.testing.assert_allclose(rows, other[name], atol=4e-3, rtol=4e-3)
    rows = ROWS.get(family, 4)
    image = [values for name, values in one.items() if name.startswith("image")]
    assert {values.shape for values in image} == {(rows, WIDTH)}
    assert min(abs(image[0] - other).max() for other in image[1:]) > 0.05
    info = read_info(out / "image")
    assert (info["width"], info["rows"]) == (WIDTH, rows)
    assert info["image_size"] == {"idefics3": 64, "smolvlm": 64}.get(family, info["image_size"])
    stored = open_store(tmp_path / "image")
    entry = read_actions(layout.action_file(root, "ego4d", "val"))[0]
    form = stored.stored(entry.image_0).shape
    assert form == (rows, WIDTH)


def test_stage_2_trains_on_the_features_and_makes_a_frame(described, world, tmp_path):
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
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    data = saved["data"]["params"]["validation"]["params"]
    one = {clip: {key: entry} for clip, actions in merged(root, out).items() for key, entry in actions.items()}
    (tmp_path / "one.json").write_text(json.dumps(dict(list(one.items())[:1])))
    data = {k: v for k, v in data.items() if k != "flip_prob"} | {"edit_path": f"{tmp_path}/one.json"}
    config = tmp_path / "generate.yaml"
    data = {"metadata_path": f"{root}/ego4d_metadata.json", "params": data}
    config.write_text(yaml.safe_dump({"model": saved["model"], "data": data}))
    path = folder / "checkpoints" / "last.ckpt"
    assert inference(["--config", str(config), "--ckpt", str(path), "inference.steps=1"]) == 0
    assert [Image.open(file).size for file in path.with_suffix("").rglob("*.jpg")]

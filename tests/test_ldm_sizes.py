"""Frames of any size: `res` as one number or [height, width], the released key `aspect_ratio`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_model import params_of, random_model, random_weights, write_config
from small_pipeline import one_input, small_pipe
from small_training import CONFIG, losses, train_run, write_run

from egogen import EgoGenError
from ldm.cache import main as cache_main
from ldm.checkpoints.layouts import to_own
from ldm.config import GenerateConfig, TrainConfig, load_config, load_model_params, to_yaml
from ldm.data import to_features
from ldm.generate import generate_batch
from ldm.images import read_pixels, to_pixels
from ldm.pipeline import LegoPipeline
from ldm.schema import InferenceConfig
from metrics.inference import main as generate_main

TRAIN = "data.params.train.params"
SAMPLES = "lightning.callbacks.image_logger.params.max_images"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """-> overrides of a small run, and what it had learned at 32 x 32."""
    root = tmp_path_factory.mktemp("sizes")
    overrides = write_run(root)
    square = train_run(overrides, root, "square", "lightning.trainer.max_steps=1", f"{SAMPLES}=0")
    return overrides, square / "checkpoints" / "last.ckpt"


def sized(size) -> list[str]:
    return [f"data.params.{part}.params.res={size}" for part in ("train", "validation")]


# ---- what is typed


@pytest.mark.parametrize(
    "keys, size",
    [
        ({"res": [256, 448]}, [256, 448]),
        ({"res": [256, 256]}, 256),
        ({"res": "64"}, 64),
        ({"res": 256, "aspect_ratio": 1.75}, [256, 448]),
        ({"aspect_ratio": 0.5}, [256, 128]),
        ({"res": [64, 96], "aspect_ratio": 1.0}, [64, 96]),
        ({"res": 8, "aspect_ratio": 2.1}, [8, 16]),  # int(16.8), as in the released code
        (
            {"min_resize_res": 64, "max_resize_res": 64, "crop_res": 64, "aspect_ratio": 2},
            [64, 128],
        ),
    ],
)
def test_sizes_of_files(tmp_path, keys, size):
    """A printed config, which is what a run's folder keeps, says the same."""
    path = tmp_path / "a.yaml"
    data = {"params": {"train": {"params": keys}}}
    path.write_text(yaml.safe_dump({"model": {"params": {"aspect_ratio": 3.0}}, "data": data}))
    config = load_config(TrainConfig, [str(path)])
    assert (config.data.train.res, config.data.validation.res) == (size, 256)
    assert load_model_params(str(path)).autoencoder.resolution == size
    path.write_text(to_yaml(config))
    assert load_config(TrainConfig, [str(path)]) == config


def test_sizes_of_variables_and_layers(monkeypatch):
    monkeypatch.setenv("SIDE", "64")
    for words, size in (
        (["res=${oc.env:SIDE}"], 64),
        (["res=[64,96]", "res=128"], 128),
        (["res=128", "res=[64,96]"], [64, 96]),
    ):
        words = [f"data.params.{word}" for word in words]
        assert load_config(GenerateConfig, [], words).data.res == size
    words = [f"{TRAIN}.res=[64,96]", "data.params.validation=${data.params.train}"]
    assert load_config(TrainConfig, [], words).data.validation.res == [64, 96]


def test_frames_are_squeezed_to_height_and_width(tmp_path):
    halves = np.zeros((30, 50, 3), np.uint8)
    halves[:, :25, 0] = 255  # red on the left
    halves[15:, :, 2] = 255  # blue below
    Image.fromarray(halves).save(tmp_path / "a.png")
    x = read_pixels(tmp_path / "a.png", (8, 24))
    assert x.shape == (3, 8, 24)
    assert (x[0, :, :10] > 0.9).all() and (x[0, :, -10:] < -0.9).all()
    assert (x[2, -3:] > 0.9).all() and (x[2, :3] < -0.9).all()


# ---- training


def test_training_on_odd_latents_with_and_without_a_cache(run, tmp_path):
    """3 x 5 latents, from a checkpoint of 8 x 8: what the UNet halves is no longer even."""
    overrides, start = run
    more = [
        *overrides,
        *sized("[12,20]"),
        f"model.params.ckpt_path={start}",
        "inference.height=null",
    ]
    more += ["lightning.trainer.max_steps=2", "lightning.trainer.check_val_every_n_epoch=1"]
    plain = train_run(more, tmp_path, "plain")
    assert Image.open(plain / "samples" / "step_000002.png").height == 12
    cache_main(["--config", str(CONFIG), "--out", f"{tmp_path}/cache", *more])
    record = tmp_path / "cache" / "train" / "cache.json"
    assert json.loads(record.read_text())["resolution"] == [12, 20]
    kept = f"data.params.cache_path={tmp_path}/cache"
    cached = losses(train_run(more, tmp_path, "cached", kept, f"{SAMPLES}=0"))
    assert len(cached) > 2
    assert cached == pytest.approx(losses(plain), rel=1e-4)
    with pytest.raises(EgoGenError, match=r"made with resolution \[12, 20\], expected \[20, 12\]"):
        train_run([*more, *sized("[20,12]")], tmp_path, "other", kept)


# ---- generation


def generation(overrides, root: Path) -> Path:
    """A config of generation for the run's model and its validation set."""
    config = load_config(TrainConfig, [str(CONFIG)], overrides)
    whole = yaml.safe_load(to_yaml(config))
    data = whole["data"]["params"]["validation"]["params"]
    metadata = Path(data["edit_path"]).parent / "ego4d_metadata.json"
    content = {"model": whole["model"], "inference": {"steps": 2, "batch_size": 2}}
    content["data"] = {"metadata_path": str(metadata), "params": data}
    path = root / "generate.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def generate(run, root: Path, *more: str) -> dict[str, bytes]:
    """{"clip/action": file} of all frames below `root`, after one more command."""
    overrides, checkpoint = run
    root.mkdir(exist_ok=True)
    if not (root / "X.ckpt").exists():
        (root / "X.ckpt").symlink_to(checkpoint)
    words = ["--config", str(generation(overrides, root)), "--ckpt", f"{root}/X.ckpt"]
    assert generate_main([*words, *more]) == 0
    frames = sorted((root / "X").rglob("*.jpg"))
    return {"/".join(path.parts[-3:-1]): path.read_bytes() for path in frames}


def record(root: Path) -> dict:
    return json.loads(next((root / "X").rglob("made_by.json")).read_text())


def heights(root: Path) -> set[tuple[int, int]]:
    return {Image.open(path).size for path in (root / "X").rglob("*.jpg")}


def test_chunks_restarts_and_single_frames_of_another_size(run, tmp_path):
    """From the checkpoint of 32; bytes do not depend on who makes a frame with whom."""
    size = "data.params.res=[32,48]"
    whole = generate(run, tmp_path / "whole", size)
    assert len(whole) == 4 and len(set(whole.values())) == 4
    for index in "21":
        chunks = generate(run, tmp_path / "chunks", size, "--n_chunk", "2", "--chunk_idx", index)
    assert chunks == whole
    next((tmp_path / "chunks" / "X").rglob("*.jpg")).unlink()
    same = ["data.params.res=32", "data.params.aspect_ratio=1.5", "inference.height=32"]
    assert generate(run, tmp_path / "chunks", *same) == whole
    assert heights(tmp_path / "whole") == {(round(450 / 260 * 32), 32)}
    assert (record(tmp_path / "whole")["res"], record(tmp_path / "whole")["height"]) == (
        [32, 48],
        32,
    )
    with pytest.raises(EgoGenError, match=r"made with res \[32, 48\], expected 32; choose"):
        generate(run, tmp_path / "whole", "data.params.res=32")


def test_records_of_squares_stay(run, tmp_path):
    """As they were: numbers; frames of a height that was typed are continued without it."""
    made = generate(run, tmp_path / "a", "inference.height=32")
    assert (record(tmp_path / "a")["res"], record(tmp_path / "a")["height"]) == (32, 32)
    assert generate(run, tmp_path / "a", "data.params.res=[32,32]") == made
    with pytest.raises(EgoGenError, match="made with height 32, expected 48"):
        generate(run, tmp_path / "a", "inference.height=48")


def test_as_released_writes_frames_as_tall_as_res(run, tmp_path):
    """And draws its noise in one stream, at the size of the latents."""
    made = generate(run, tmp_path / "a", "as_released=true", "data.params.res=[16,24]")
    assert heights(tmp_path / "a") == {(round(450 / 260 * 16), 16)}
    assert len(set(made.values())) == 4


def test_twice_the_size_is_trained_from_a_checkpoint_and_generates(run, tmp_path):
    overrides, start = run
    more = [f"model.params.ckpt_path={start}", "lightning.trainer.max_steps=1", f"{SAMPLES}=0"]
    folder = train_run(overrides, tmp_path, "twice", *sized(64), *more)
    twice = overrides, folder / "checkpoints" / "last.ckpt"
    generate(twice, tmp_path / "a", "data.params.res=64")
    assert heights(tmp_path / "a") == {(round(450 / 260 * 64), 64)}


# ---- the pipeline


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return small_pipe(tmp_path_factory.mktemp("pipe"))


@pytest.mark.parametrize("size", [(12, 20), [32, 48], 64])
def test_a_resolution_of_the_pipeline(pipe, tmp_path, size):
    """The frames that `generate_batch` makes of pixels of that size."""
    height, width = (size, size) if size == 64 else size
    given = one_input(resolution=size)
    frame = pipe(**given).images
    assert frame.shape == (1, 3, height, width)
    params = params_of(write_config(tmp_path))
    features = {name: given[f"{name}_features"] for name in ("image", "text")}
    sample = {
        "pixels": to_pixels(given["image"], size),
        "prompt": given["description"],
        "features": to_features(features, params.conditioner.features),
    }
    inference = InferenceConfig(steps=2)
    names = [("photo", "0")]
    made = generate_batch(random_model(params), [sample], names, inference, 1.5, 7.5)
    assert torch.equal(frame, (made.clamp(-1, 1) + 1) / 2)
    assert pipe(**given | {"output_type": "np"}).images.shape == (1, height, width, 3)
    picture = pipe(**given | {"output_type": "pil"}).images[0]
    assert picture.size == (round(64 / 48 * height), height)
    picture = pipe(**given | {"output_type": "pil"}, height=30).images[0]
    assert picture.size == (40, 30)


def test_latents_have_the_resolution(pipe):
    latents = torch.randn(1, 4, 3, 5)
    given = one_input(latents=latents, output_type="latent")
    assert pipe(**given, resolution=(12, 20)).images.shape == latents.shape
    with pytest.raises(
        EgoGenError, match=r"latents: \(1, 4, 3, 5\), expected a tensor \(1, 4, 8, 8"
    ):
        pipe(**given)


@pytest.mark.parametrize(
    "bad", [0, -32, 30, 32.0, True, "a", [32], (32, 32, 32), (32, 30), [None, 4]]
)
def test_a_resolution_that_cannot_be_had(pipe, bad):
    with pytest.raises(
        EgoGenError, match=r"^resolution=.*: expected a multiple of 4 pixels, or \["
    ):
        pipe(**one_input(resolution=bad))


def test_a_folder_remembers_the_size_of_its_run(tmp_path):
    config = write_config(tmp_path)
    weights = random_weights(params_of(config), ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights), "ema_updates": 1}, tmp_path / "a.ckpt")
    config.write_text(f"{config.read_text()}\ndata: {{params: {{res: 12, aspect_ratio: 1.7}}}}\n")
    made = LegoPipeline.from_checkpoint(tmp_path / "a.ckpt", config)
    made.save_pretrained(tmp_path / "saved")
    loaded = LegoPipeline.from_pretrained(tmp_path / "saved")
    expected = made(**one_input(resolution=(12, 20))).images
    for pipe in (made, loaded):
        assert torch.equal(pipe(**one_input()).images, expected)
    assert loaded(**one_input(resolution=32)).images.shape[2:] == (32, 32)
    loaded.vae.enable_tiling()  # which compares sizes with the autoencoder's own, a number
    assert torch.equal(loaded(**one_input()).images, expected)

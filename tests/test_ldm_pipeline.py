"""`LegoPipeline`: the frames of metrics/inference.py, saved and loaded, and what it refuses."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from recipe import image
from small_model import (
    FEATURE_DIM,
    IMAGE_ROWS,
    RESOLUTION,
    params_of,
    random_model,
    random_weights,
    write_config,
)

from egogen import EgoGenError
from egogen.seeds import stable_seed
from ldm.checkpoints.layouts import to_own
from ldm.data import to_features
from ldm.generate import generate_batch
from ldm.images import to_image, to_pixels
from ldm.pipeline import LegoPipeline
from ldm.schema import InferenceConfig

STEPS = 2
NAMES = [("clip_0", "0"), ("clip_1", "7")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def params(root):
    return params_of(write_config(root))


@pytest.fixture(scope="module")
def pipe(params):
    made = LegoPipeline.from_model(random_model(params))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def inputs():
    """Two photographs of different size, with what is told about them."""
    photos = [Image.fromarray(image(f"photo.{i}", *size)) for i, size in enumerate(SIZES)]
    draw = np.random.RandomState(0).standard_normal
    return {
        "image": photos,
        "description": ["a b", "b"],
        "image_features": [draw((IMAGE_ROWS, FEATURE_DIM)).astype(np.float16) for _ in photos],
        "text_features": [draw((n, FEATURE_DIM)).astype(np.float16) for n in (3, 90)],
    }


SIZES = [(48, 64), (60, 40)]  # height, width


def one(inputs, i):
    return {name: values[i] for name, values in inputs.items()}


def generators(seed=0):
    return [torch.Generator().manual_seed(stable_seed(seed, *name)) for name in NAMES]


def settings(**more):
    return {"num_inference_steps": STEPS, "height": 48} | more


def equal(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m"])
def test_the_frames_of_inference_bit_for_bit(pipe, params, inputs, sampler):
    """Same weights, same noise: the function that metrics/inference.py calls."""
    model = random_model(params)
    inference = InferenceConfig()
    inference.steps, inference.sampler = STEPS, sampler
    samples = [
        {
            "pixels": to_pixels(photo, RESOLUTION),
            "prompt": prompt,
            "features": to_features(
                {"image": pictures, "text": texts}, params.conditioner.features
            ),
        }
        for photo, prompt, pictures, texts in zip(*inputs.values(), strict=True)
    ]
    decoded = generate_batch(model, samples, NAMES, inference, 1.5, 7.5)
    frames = [
        to_image(x, photo.size, 48, "clamp")
        for x, photo in zip(decoded, inputs["image"], strict=True)
    ]
    options = settings(generator=generators(), sampler=sampler)
    squares = pipe(**inputs, **options, output_type="pt").images
    assert torch.equal(squares, (decoded.clamp(-1, 1) + 1) / 2)
    options["generator"] = generators()
    assert equal(pipe(**inputs, **options).images, frames)


def test_saved_and_loaded_gives_the_same_frame(pipe, inputs, tmp_path):
    before = pipe(**inputs, **settings(seed=3), output_type="np").images
    assert isinstance(pipe, diffusers.DiffusionPipeline)
    pipe.save_pretrained(tmp_path / "saved")
    loaded = LegoPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert equal(loaded(**inputs, **settings(seed=3), output_type="np").images, before)
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["conditioner"] == ["ldm.conditioning", "FeatureConditioner"]
    assert not list((tmp_path / "saved").rglob("*.bin"))


def test_made_from_a_checkpoint(root, params, inputs, tmp_path):
    """The averages, or by an override the live weights."""
    weights = random_weights(params, ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights)}, tmp_path / "last.ckpt")
    for override, seed in ((), 1), (["model.params.load_ema=false"], 0):
        made = LegoPipeline.from_checkpoint(tmp_path / "last.ckpt", root / "config.yaml", override)
        wanted = random_model(params, seed).unet.state_dict()
        for name, value in made.unet.state_dict().items():
            assert torch.equal(value, wanted[name])


def test_a_picture_depends_on_its_seed_not_on_its_place(pipe, inputs):
    both = pipe(**inputs, **settings(seed=[4, 5]), output_type="pt").images
    for i, seed in enumerate((4, 5)):
        alone = pipe(**one(inputs, i), **settings(seed=seed), output_type="pt").images
        # Kernels round differently for other batch sizes; values are about 1.
        torch.testing.assert_close(both[i : i + 1], alone, atol=2e-4, rtol=1e-3)
    same = pipe(**one(inputs, 0), **settings(seed=4), output_type="pt").images
    assert torch.equal(same, pipe(**one(inputs, 0), **settings(seed=4), output_type="pt").images)
    other = pipe(**one(inputs, 0), **settings(seed=5), output_type="pt").images
    assert (same - other).abs().mean() > 0.01


def test_guidance_and_features_count(pipe, inputs):
    first = one(inputs, 0)
    base = pipe(**first, **settings(), output_type="pt").images
    changes = [
        settings(guidance_scale=3.0),
        settings(image_guidance_scale=1.0),
        settings() | {"text_features": -first["text_features"]},
        settings() | {"image_features": -first["image_features"]},
        settings() | {"description": "b b b"},
    ]
    for change in changes:
        assert not torch.equal(pipe(**first | change, output_type="pt").images, base)


def test_input_and_output_of_every_kind(pipe, inputs, tmp_path):
    first = one(inputs, 0)
    frame = pipe(**first, **settings())
    assert isinstance(frame, diffusers.ImagePipelineOutput) and frame.images[0].size == (64, 48)
    first["image"].save(tmp_path / "photo.png")
    paths = {"image": tmp_path / "photo.png"}
    for name in ("image_features", "text_features"):
        paths[name] = str(tmp_path / f"{name}.npy")
        np.save(paths[name], first[name])
    assert equal(pipe(**first | paths, **settings()).images, frame.images)
    tensors = {n: torch.from_numpy(first[n])[None] for n in ("image_features", "text_features")}
    assert equal(pipe(**first | tensors, **settings(), return_dict=False)[0], frame.images)
    pixels = pipe(**first, **settings(), output_type="np").images
    assert pixels.shape == (1, RESOLUTION, RESOLUTION, 3) and 0 <= pixels.min() <= pixels.max() <= 1
    grey = pipe(**first | {"image": first["image"].convert("L")}, **settings()).images[0]
    assert grey.mode == "RGB" and grey.size == (64, 48)


@pytest.mark.parametrize("variant", ["none", "image", "text"])
def test_other_variants_of_conditioning(variant, inputs, tmp_path):
    made = LegoPipeline.from_model(random_model(params_of(write_config(tmp_path, variant))))
    made.save_pretrained(tmp_path / "saved")
    loaded = LegoPipeline.from_pretrained(tmp_path / "saved")
    first = one(inputs, 0)
    unused = {"none": ("image", "text"), "image": ("text",), "text": ("image",)}[variant]
    for kind in unused:
        first.pop(f"{kind}_features")
    frames = [pipeline(**first, **settings()).images for pipeline in (made, loaded)]
    assert equal(*frames)
    if variant != "none":
        first.pop(f"{variant}_features")
        with pytest.raises(EgoGenError, match=f"{variant}_features: missing"):
            made(**first, **settings())


BAD = {
    "description: 1 for 2 pictures": {"description": ["a"]},
    r"image_features: feature of shape \(3, 8\), expected \(4, 8\)": {
        "image_features": [np.zeros((3, 8), np.float32)] * 2
    },
    r"text_features: feature of shape \(3, 9\), expected \(n, 8\)": {
        "text_features": [np.zeros((3, 9), np.float32)] * 2
    },
    "holds NaN": {"text_features": [np.full((3, 8), np.nan, np.float32)] * 2},
    "none.npy: no such feature file": {"text_features": ["none.npy"] * 2},
    "none.jpg: no such image": {"image": ["none.jpg"] * 2},
    "generator: 1 for 2 pictures": {"generator": [torch.Generator()]},
    "sampler='euler': expected one of euler_ancestral": {"sampler": "euler"},
    "output_type='jpg': expected one of pil": {"output_type": "jpg"},
}


@pytest.mark.parametrize("told", BAD)
def test_bad_input_is_named(pipe, inputs, told):
    with pytest.raises(EgoGenError, match=told):
        pipe(**inputs | BAD[told], num_inference_steps=STEPS)


def test_half_precision(pipe, inputs, tmp_path):
    """bfloat16, which CPUs compute too: near the full-precision picture (8 bits of mantissa)."""
    pipe.save_pretrained(tmp_path / "saved")
    half = LegoPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    assert half.conditioner.dtype == half.text_encoder.dtype == torch.bfloat16
    first = one(inputs, 0)
    pictures = [p(**first, **settings(), output_type="pt").images for p in (pipe, half)]
    assert (pictures[0] - pictures[1]).abs().mean() < 0.1 * pictures[0].std()


def test_pushed_to_a_hub_is_the_whole_folder(pipe, monkeypatch):
    """All of the library's own code but what talks to the network."""
    sent = {}

    class Offline:
        repo_id = "me/lego"

        def save(self, path):
            Path(path).write_text("card")

    def upload(self, working_dir, repo_id, **_):
        sent[repo_id] = {str(p.relative_to(working_dir)) for p in Path(working_dir).rglob("*.*")}

    for name in ("create_repo", "load_or_create_model_card", "populate_model_card"):
        monkeypatch.setattr(f"diffusers.utils.hub_utils.{name}", lambda *_, **__: Offline())
    monkeypatch.setattr(LegoPipeline, "_upload_folder", upload)
    pipe.push_to_hub("me/lego")
    weights = {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "conditioner")}
    assert {"model_index.json", "README.md", "conditioner/config.json", *weights} <= sent["me/lego"]


def test_the_bar_moves_with_every_step(pipe, inputs):
    seen = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def update(self, n=1):
            seen.append(n)

    pipe_bar, pipe.progress_bar = pipe.progress_bar, lambda total: Bar()
    try:
        pipe(**one(inputs, 0), **settings())
    finally:
        pipe.progress_bar = pipe_bar
    assert seen == [1] * STEPS and not pipe.unet._forward_hooks

"""What `LegoPipeline` takes and gives: arrays and tensors, numbers, noise, missing parts."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import RESOLUTION
from small_pipeline import one_input, small_pipe, two_inputs

from egogen import EgoGenError
from ldm.pipeline import LegoPipeline


def test_arrays_and_tensors_are_photographs_too(pipe, usual):
    photo = one_input()["image"]
    array = np.asarray(photo)
    floats = array.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    same = [array, array[None], floats, floats.astype(np.float64)[None], tensor, tensor[None]]
    same += [tensor.double(), torch.from_numpy(array).permute(2, 0, 1), [array], [tensor[None]]]
    same += [tensor.clone().requires_grad_(), (photo,)]
    for given in same:
        assert torch.equal(pipe(**one_input(image=given)).images, usual)
    both = two_inputs()
    wanted = pipe(**both).images
    arrays = np.stack([np.asarray(item) for item in both["image"]])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255
    for given in (arrays, tensors, [arrays[0], tensors[1]], list(tensors)):
        assert torch.equal(pipe(**two_inputs(image=given)).images, wanted)
    grey = array.mean(axis=2).round().astype(np.uint8)
    forms = [grey, grey[..., None], torch.from_numpy(grey)[None] / 255, Image.fromarray(grey)]
    first, *others = [pipe(**one_input(image=form)).images for form in forms]
    assert all(torch.equal(first, other) for other in others)


SOME = np.full((6, 5, 3), 0.5, np.float32)
WRONG = {
    r"image: ndarray \(3, 6, 5\), expected \(H, W, 3\)": {"image": SOME.transpose(2, 0, 1)},
    r"image: Tensor \(6, 5, 3\), expected \(3, H, W\)": {"image": torch.from_numpy(SOME)},
    "image: values from -1.0 to 1.0, expected 0 to 1": {
        "image": np.linspace(-1, 1, 60).reshape(4, 5, 3)
    },
    "image: values from nan": {"image": SOME * np.nan},
    "image: values of type int64": {"image": np.zeros((4, 5, 3), np.int64)},
    "image: empty": {"image": []},
    "image: empty, expected": {"image": SOME[:0]},
    "image: NoneType, expected a PIL image": {"image": None},
    "image: int, expected": {"image": 3},
    "description: int, expected a text": {"description": 3},
    "num_inference_steps=0: expected at least 1": {"num_inference_steps": 0},
    "num_inference_steps=-1: expected at least 1": {"num_inference_steps": -1},
    "num_inference_steps=2.0: expected at least 1, an int": {"num_inference_steps": 2.0},
    "num_inference_steps='2': expected": {"num_inference_steps": "2"},
    "num_inference_steps=True: expected": {"num_inference_steps": True},
    "num_inference_steps=1001: expected at most 1000": {"num_inference_steps": 1001},
    "guidance_scale=nan: expected a finite number": {"guidance_scale": float("nan")},
    "guidance_scale='7.5': expected a finite number": {"guidance_scale": "7.5"},
    "image_guidance_scale=inf: expected": {"image_guidance_scale": float("inf")},
    "image_guidance_scale=None: expected": {"image_guidance_scale": None},
    "height=0: expected at least 1": {"height": 0},
    "seed=0.5: expected an integer": {"seed": 0.5},
    "seed='a': expected an integer": {"seed": "a"},
    "seed: 3 for 1 pictures": {"seed": [1, 2, 3]},
    "generator: expected a torch.Generator": {"generator": 3},
    r"latents: \(4, 8, 8\), expected a tensor \(1, 4, 8, 8\)": {"latents": torch.zeros(4, 8, 8)},
    "latents: ndarray|latents: .*expected a tensor": {"latents": np.zeros((1, 4, 8, 8))},
    "latents: hold NaN": {"latents": torch.full((1, 4, 8, 8), torch.nan)},
    "features: pose, expected one of image, text": {"features": {"pose": SOME[0]}},
}


@pytest.mark.parametrize("told", WRONG)
def test_wrong_arguments_are_named(pipe, told):
    with pytest.raises(EgoGenError, match=told):
        pipe(**one_input(**WRONG[told]))


def test_numbers_of_numpy_are_numbers(pipe, usual):
    same = dict(num_inference_steps=np.int64(2), guidance_scale=np.float64(7.5), seed=np.int32(0))
    assert torch.equal(pipe(**one_input(**same)).images, usual)


def test_output_of_every_kind_is_the_same_picture(pipe, usual):
    assert usual.shape == (1, 3, RESOLUTION, RESOLUTION)
    assert usual.min() >= 0 and usual.max() <= 1 and usual.max() - usual.min() > 0.3
    array = pipe(**one_input(output_type="np")).images
    assert np.array_equal(array, usual.permute(0, 2, 3, 1).numpy())
    latents = pipe(**one_input(output_type="latent")).images
    assert latents.shape == (1, 4, 8, 8)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    assert torch.equal((decoded.clamp(-1, 1) + 1) / 2, usual)


def test_noise_may_be_given(pipe):
    """As with diffusers: `latents` are the first draw, one generator draws for all in order."""

    def one(seed):
        return torch.Generator().manual_seed(seed)

    alone = pipe(**two_inputs(generator=one(3))).images
    assert torch.equal(pipe(**two_inputs(generator=one(3))).images, alone)
    generator = one(3)
    start = torch.randn(2, 4, 8, 8, generator=generator)
    assert torch.equal(pipe(**two_inputs(latents=start, generator=generator)).images, alone)
    assert not torch.equal(alone[0], pipe(**two_inputs(generator=one(4))).images[0])
    each = pipe(**two_inputs(generator=(one(3), one(4)))).images
    first = pipe(**one_input(generator=one(3))).images
    torch.testing.assert_close(each[:1], first, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "unet", "scheduler"])
def test_a_missing_part_is_named(pipe, part, tmp_path):
    with pytest.raises(EgoGenError, match=f"pipeline: {part} is missing"):
        LegoPipeline(**pipe.components | {part: None})(**one_input())


def test_features_without_a_conditioner_are_named(tmp_path):
    bare = small_pipe(tmp_path, variant="none")
    with pytest.raises(EgoGenError, match="image_features: given, but the conditioner is missing"):
        bare(**one_input())
    with pytest.raises(TypeError, match="unexpected keyword argument 'strength'"):
        bare(**one_input(strength=0.5))

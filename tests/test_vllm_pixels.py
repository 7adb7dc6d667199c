"""Frames as the vision tower sees them: the aspect options, and the numbers of a folder."""

import json

import numpy as np
import pytest
from PIL import Image
from recipe import image

from egogen.errors import EgoGenError
from llava.image_processing import ImageProcessor, load_image_processor

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def seen(processor: ImageProcessor, picture: Image.Image) -> np.ndarray:
    """Back to grey levels, (size, size, 3)."""
    values = processor(picture).numpy().transpose(1, 2, 0)
    return (values * np.array(processor.std) + np.array(processor.mean)) * 255


@pytest.mark.parametrize("size", [(60, 32), (32, 60), (48, 48)])
def test_squeezing_keeps_all_of_the_frame(size):
    """Bicubic, each side by its own factor."""
    picture = Image.fromarray(image("wide", size[1], size[0]))
    expected = picture.resize((24, 24), Image.Resampling.BICUBIC)
    found = seen(ImageProcessor(24, "squeeze"), picture)
    np.testing.assert_allclose(found, np.asarray(expected, float), atol=1e-3)


def test_padding_is_of_the_mean_colour_on_both_sides():
    found = seen(ImageProcessor(40, "pad"), Image.new("RGB", (40, 20), (250, 0, 0)))
    padding = np.array([122, 116, 104])  # cut, not rounded, as in the released code
    np.testing.assert_allclose(found[:10], np.broadcast_to(padding, (10, 40, 3)), atol=1e-3)
    np.testing.assert_allclose(found[30:], np.broadcast_to(padding, (10, 40, 3)), atol=1e-3)
    np.testing.assert_allclose(found[10:30, :, 0], 250, atol=1e-3)


def test_square_is_the_middle():
    picture = Image.new("RGB", (60, 20), (0, 0, 0))
    picture.paste((200, 200, 200), (20, 0, 40, 20))
    assert seen(ImageProcessor(20), picture).min() > 199


def test_mean_and_std_of_the_folder(tmp_path):
    own = load_image_processor(tmp_path, 24, "pad")
    assert (own.size, own.aspect) == (24, "pad")
    np.testing.assert_allclose((own.mean, own.std), (MEAN, STD))
    settings = {"image_mean": [0.5, 0.25, 0.125], "image_std": [1.0, 2.0, 4.0]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    given = load_image_processor(tmp_path, 24, "pad")
    assert given == ImageProcessor(24, "pad", (0.5, 0.25, 0.125), (1.0, 2.0, 4.0))
    values = given(Image.new("RGB", (9, 9), (255, 255, 255))).numpy()
    np.testing.assert_allclose(values[:, 0, 0], [0.5, 0.375, 0.21875])
    (tmp_path / "preprocessor_config.json").write_text('{"image_std": [1.0]}')
    with pytest.raises(EgoGenError, match="'image_std': expected three numbers"):
        load_image_processor(tmp_path, 24, "pad")

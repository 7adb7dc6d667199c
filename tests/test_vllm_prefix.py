"""The system text, whose keys and values are computed once a describer, changes nothing."""

import copy

import pytest
import torch
from PIL import Image
from recipe import image
from vllm_tiny import write_released

from egogen.labels import question
from llava.checkpoints.load import load
from llava.describing.decoding import Decoding, chooser, decode, read_prefix
from llava.describing.llava_describer import LlavaDescriber, prompt_ids
from llava.tokens import IMAGE_ID, expand

ACTIONS = ["cut", "pick up the mug that stands behind the open drawer", "wash the pan", "open it"]
LENGTH = 10


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def loaded(request, tmp_path_factory):
    folder = write_released(tmp_path_factory.mktemp(request.param))
    return load(folder, device="cpu", attn=request.param)


def frames(count):
    return [Image.fromarray(image(f"frame_{k}", 256, 455)) for k in range(count)]


def plainly(loaded, pictures, actions, seeds, settings):
    """Ids and rows of each sample in a batch of its own, all of whose prompt is computed."""
    for picture, action, seed in zip(pictures, actions, seeds, strict=True):
        with torch.inference_mode():
            pixels = loaded.image_processor.batch([picture])
            features = loaded.model.image_features(pixels)
        (written,) = decode(
            loaded.model,
            [expand(prompt_ids(loaded, question(action)), loaded.model.patches)],
            features,
            choose=chooser(settings, [seed]),
            max_new_tokens=settings.max_new_tokens,
            eos_id=loaded.tokenizer.eos_id,
            pad_id=loaded.tokenizer.pad_id,
            vocabulary=len(loaded.tokenizer),
        )
        yield written


def described(describer, pictures, actions, seeds, texts=None):
    names = [("clip", str(row)) for row in range(len(actions))]
    questions = [question(action) for action in actions]
    return describer.describe(pictures, questions, seeds=seeds, names=names, texts=texts)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_batches_in_a_row_are_as_without_a_prefix(loaded, temperature):
    """Lengths and questions differ; the second batch finds the prefix, the third is one sample."""
    settings = Decoding(temperature=temperature, max_new_tokens=LENGTH)
    describer, pictures, seeds = LlavaDescriber(loaded, settings), frames(4), [3, 1, 4, 1]
    expected = list(plainly(loaded, pictures, ACTIONS, seeds, settings))
    for rows in ([0, 1, 2], [3, 1], [2], [1, 0, 3]):
        given = [[values[row] for row in rows] for values in (pictures, ACTIONS, seeds)]
        for row, made in zip(rows, described(describer, *given), strict=True):
            assert list(made.ids) == expected[row].ids
            found = torch.from_numpy(made.features["text"]).float()
            torch.testing.assert_close(found, expected[row].rows, atol=2e-3, rtol=2e-3)


def test_rows_of_given_texts_are_those_of_writing(loaded):
    describer = LlavaDescriber(loaded, Decoding(temperature=0, max_new_tokens=LENGTH))
    written = described(describer, frames(2), ACTIONS[:2], [0, 0])
    again = described(describer, frames(2), ACTIONS[:2], [0, 0], [made.text for made in written])
    for one, other in zip(written, again, strict=True):
        rows = min(len(one.ids), len(other.ids), LENGTH - 1)
        same = [a == b for a, b in zip(one.ids[:rows], other.ids, strict=False)]
        count = same.index(False) if False in same else rows
        found, expected = (torch.from_numpy(made.features["text"]).float() for made in (one, other))
        torch.testing.assert_close(found[:count], expected[:count], atol=2e-3, rtol=2e-3)


def test_the_prefix_is_kept_as_it_was_and_is_of_the_model(loaded):
    """Batches read it and add nothing to it; another prefix gives other rows."""
    describer = LlavaDescriber(loaded, Decoding(temperature=0, max_new_tokens=4))
    first = described(describer, frames(2), ACTIONS[:2], [0, 0])
    prefix = describer._prefix
    assert prefix is describer._prefix
    kept = [copy.deepcopy(layer.keys) for layer in prefix.layers]
    length = prompt_ids(loaded, "").index(IMAGE_ID)
    assert {keys.shape[::2] for keys in kept} == {(1, length)}  # one sample's, no spare positions
    described(describer, frames(2), ACTIONS[2:], [0, 0])
    assert all(
        torch.equal(layer.keys, keys) for layer, keys in zip(prefix.layers, kept, strict=True)
    )
    describer._prefix = read_prefix(loaded.model, [9] * length)
    other = described(describer, frames(2), ACTIONS[:2], [0, 0])
    assert abs(first[0].features["text"] - other[0].features["text"]).max() > 1e-2

"""Guidance in an interval of noise levels, and the preset that uses it."""

import json

import pytest
import torch
from small_pipeline import one_input, two_inputs

from egogen import EgoGenError
from ldm.config import GenerateConfig, TrainConfig, load_config
from ldm.data import given_conditions
from ldm.generate import generate_batch
from ldm.images import to_pixels
from ldm.released_config import PRESETS
from ldm.sampling import SAMPLERS
from ldm.schedule import NoiseSchedule
from ldm.schema import InferenceConfig


@pytest.fixture
def evaluated(pipe):
    """How many items each call of the UNet has had so far."""
    counts = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, given: counts.append(len(given[0])))
    yield counts
    handle.remove()


@pytest.mark.parametrize("name", SAMPLERS)
def test_outside_the_interval_one_branch_is_evaluated(pipe, evaluated, name):
    call = one_input(num_inference_steps=4, sampler=name)
    usual = pipe(**call).images
    assert torch.equal(pipe(**call, guidance_interval=(0, 20)).images, usual)
    assert evaluated == [3] * 8
    never = pipe(**call, guidance_interval=[50, 60.0]).images
    alone = pipe(**call, guidance_scale=1.0, image_guidance_scale=1.0).images
    assert torch.equal(never, alone) and evaluated[8:] == [1] * 8
    sigmas = SAMPLERS[name].sigmas(NoiseSchedule(), 4).tolist()
    part = pipe(**call, guidance_interval=(sigmas[2], sigmas[1])).images
    assert evaluated[16:] == [1, 3, 1, 1]  # the upper end belongs to it, the lower does not
    assert not torch.equal(part, usual) and not torch.equal(part, never)


def test_samples_of_a_batch_do_not_touch_each_other(pipe):
    call = two_inputs(num_inference_steps=4, guidance_interval=(0.5, 5))
    both = pipe(**call, seed=[3, 4]).images
    for i in range(2):
        one = {n: v[i] if isinstance(v, list) else v for n, v in call.items()}
        torch.testing.assert_close(
            pipe(**one, seed=3 + i).images, both[i : i + 1], atol=1e-4, rtol=0
        )


def test_padded_batches_give_the_same_bits(pipe):
    given = {"image": two_inputs()["image_features"], "text": two_inputs()["text_features"]}
    pixels = [to_pixels(photo, 32) for photo in two_inputs()["image"]]
    table = pipe.conditioner.features
    samples = given_conditions(pixels, {"description": ["a b", "b"]}, given, table)
    inference = InferenceConfig(steps=4, sampler="dpmpp_2m", guidance_interval=[0.5, 5.0])
    names = [("a",), ("b",)]
    both = generate_batch(pipe.model, samples, names, inference, 1.5, 7.5, pad_to=2)
    alone = generate_batch(pipe.model, samples[1:], names[1:], inference, 1.5, 7.5, pad_to=2)
    assert torch.equal(alone[0], both[1])


@pytest.mark.parametrize(
    "bad", [3, [1], [2, 1], [1, 1], [-1, 2], [0, float("inf")], "ab", [0, "a"]]
)
def test_no_interval_is_refused_by_name(pipe, bad):
    with pytest.raises(EgoGenError, match="^guidance_interval=.*expected"):
        pipe(**one_input(guidance_interval=bad))


FAST = PRESETS["fast"]["inference"]


def inference_of(tmp_path, content, *typed, schema=GenerateConfig):
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps(content))
    return load_config(schema, [str(path)], typed).inference


def test_a_preset_costs_at_most_a_fifth_of_the_released_evaluations():
    usual = InferenceConfig()
    sampler = SAMPLERS[FAST["sampler"]]
    assert 5 * 3 * FAST["steps"] <= 3 * usual.steps
    low, high = FAST["guidance_interval"]
    assert any(low < s <= high for s in sampler.sigmas(NoiseSchedule(), FAST["steps"]).tolist())


def test_what_wins_over_a_preset(tmp_path):
    released = {"inference": {"steps": 100, "scales_img": [1.5]}}
    typed = "inference.preset=fast"
    for schema in (GenerateConfig, TrainConfig):
        made = inference_of(tmp_path, released, typed, schema=schema)
        assert {name: getattr(made, name) for name in FAST} == FAST
    for words in ((typed, "inference.steps=7"), ("inference.steps=7", typed)):
        made = inference_of(tmp_path, released, *words)
        assert made.steps == 7 and made.sampler == FAST["sampler"]
    own = {"inference": {"preset": "fast", "sampler": "ddim", "guidance_interval": None}}
    made = inference_of(tmp_path, own)
    assert (made.sampler, made.steps, made.guidance_interval) == ("ddim", FAST["steps"], None)
    assert inference_of(tmp_path, own, "inference.preset=null").steps == 100
    assert inference_of(tmp_path, {"as_released": True, **own}).jpeg_quality == 75


def test_a_config_that_was_written_reads_the_same(tmp_path):
    from ldm.config import to_yaml

    config = load_config(GenerateConfig, [], ["inference.preset=fast", "inference.steps=9"])
    (tmp_path / "a.yaml").write_text(to_yaml(config))
    assert load_config(GenerateConfig, [str(tmp_path / "a.yaml")]).inference == config.inference

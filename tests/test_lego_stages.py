"""Both stages asked one after the other, as the page asks them."""

import threading

import numpy as np
import pytest
import torch
from model_families import FAMILIES, write
from model_parts import WIDTH
from PIL import Image, ImageChops
from small_dataset import picture
from small_model import params_of, random_weights, write_config
from vllm_tiny import write_released

from ldm.checkpoints.layouts import to_own
from ldm.config import GenerateConfig, load_config
from lego.stages import Stages
from llava.describing.job import Decoding

PHOTO = picture(3, (90, 60))
ASKED = [PHOTO], ["pick up the mug"]


@pytest.fixture(scope="module", params=["llava", *FAMILIES[:1]])
def stages(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    if request.param == "llava":
        vllm, rows, width = write_released(root / "vllm"), 256, 64
    else:
        vllm, rows, width = write(request.param, root / "vllm"), 4, WIDTH
    sizes = [
        f"model.params.conditioner.{k}" for k in (f"feature_dim={width}", f"image_rows={rows}")
    ]
    config = write_config(root)
    weights = random_weights(params_of(config, *sizes), ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights)}, root / "frame.ckpt")
    overrides = [*sizes, "data.params.res=32", "inference.steps=3", "inference.seed=7"]
    loaded = load_config(GenerateConfig, [str(config)], overrides)
    settings = Decoding(0.7, max_new_tokens=12)
    return Stages(vllm, root / "frame.ckpt", loaded, settings, torch.device("cpu"))


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


def test_a_text_is_told_as_it_grows_and_is_the_same_untold(stages):
    told: list[str] = []
    (made,) = stages.describe(*ASKED, on_text=told.append)
    assert len(told) >= 2 and told[-1] == made.text
    assert [len(text) for text in told] == sorted(len(text) for text in told)
    (untold,) = stages.describe(*ASKED)
    assert untold.text == made.text
    np.testing.assert_array_equal(untold.features["text"], made.features["text"])


def test_what_is_told_can_end_the_work_and_the_next_is_undisturbed(stages):
    (described,) = stages.describe(*ASKED)
    (frame,) = stages.draw(*ASKED, [described])
    seen: list = []

    def stop(news) -> None:
        seen.append(news)
        if len(seen) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stages.describe(*ASKED, on_text=stop)
    assert len(seen) == 2
    seen.clear()
    with pytest.raises(InterruptedError):
        stages.draw(*ASKED, [described], on_step=stop)
    assert seen == [1, 2]
    (after,) = stages.frames(*ASKED)
    assert after.description == described.text and same(after.image, frame.image)


def test_an_edited_text_has_its_own_features_and_frame(stages):
    (written,) = stages.describe(*ASKED)
    (edited,) = stages.describe(*ASKED, texts=["The left hand lifts the blue jar."])
    assert edited.text == "The left hand lifts the blue jar."
    assert edited.features["text"].shape != written.features["text"].shape
    np.testing.assert_array_equal(edited.features["image"], written.features["image"])
    frames = [stages.draw(*ASKED, [made])[0].image for made in (written, edited)]
    assert not same(*frames)


def test_temperature_and_seed_of_a_call_are_not_kept(stages):
    before = stages.describe(*ASKED)[0].text
    cold = [stages.describe(*ASKED, seed=seed, temperature=0)[0].text for seed in (1, 2)]
    assert cold[0] == cold[1]
    assert stages.describe(*ASKED)[0].text == before


def test_threads_that_share_stages_get_what_each_would_alone(stages):
    actions = ["pick up the mug", "open the jar", "cut the apple"]
    alone = [stages.frames([PHOTO], [action])[0] for action in actions]
    found = [None] * len(actions)

    def make(place: int) -> None:
        (found[place],) = stages.frames([PHOTO], [actions[place]])

    threads = [threading.Thread(target=make, args=(place,)) for place in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, found, strict=True):
        assert one.description == other.description and same(one.image, other.image)

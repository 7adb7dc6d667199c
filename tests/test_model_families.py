"""The tiny models of all families: what a hub folder is loaded and asked with works on them."""

import model_families
import numpy as np
import pytest
import torch
from model_families import FAMILIES
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

ROWS = {"llava": 16, "llava_onevision": 88, "idefics3": 20, "smolvlm": 20, "gemma4": 64}


def picture(number: int) -> Image.Image:
    """A coloured square of 64 pixels."""
    colours = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC)


def question(number: int, text: str) -> list[dict]:
    parts = [{"type": "image", "image": picture(number)}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    """Family, model and processor, as a user loads them."""
    folder = model_families.write(request.param, tmp_path_factory.mktemp(request.param))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return request.param, model, AutoProcessor.from_pretrained(folder, padding_side="left")


def batch(processor, conversations):
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )


def test_the_picture_has_its_rows(loaded):
    family, model, processor = loaded
    asked = batch(processor, [question(0, "What?"), question(1, "How does the person cut?")])
    rows = (asked["input_ids"] == model.config.image_token_id).sum(1)
    assert rows.tolist() == [ROWS.get(family, 4)] * 2
    assert asked["attention_mask"][0, 0] == 0, "padded at the left"


def test_two_words_follow_picture_and_question(loaded):
    _, model, processor = loaded
    asked = batch(processor, [question(k, text) for k in (0, 1, 2) for text in ("What?", "Cut?")])
    settings = GenerationConfig(do_sample=False, max_new_tokens=2, output_logits=True)
    settings.return_dict_in_generate = True
    made = model.generate(**asked, generation_config=settings)
    assert made.sequences.shape[1] == asked["input_ids"].shape[1] + 2
    first = made.logits[0].log_softmax(-1)
    assert (torch.pdist(first) > 0.1).all(), "every picture and question counts"

"""Text features by one pass over prompt and text, whatever wrote the text."""

import numpy as np
import pytest
import torch
from vllm_layouts import describe, golden_request
from vllm_tiny import read, write_released

from egogen.labels import question
from llava.checkpoints.load import load
from llava.conversation import TEMPLATES
from llava.describing.decoding import decode, greedy, text_rows
from llava.describing.llava_describer import answer_ids, prompt_ids
from llava.tokens import encode_conversation, expand

GENERATION = read("generation.json")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(write_released(tmp_path_factory.mktemp("released")), device="cpu")


def step_by_step(loaded, prompts, features):
    return decode(
        loaded.model,
        prompts,
        features,
        choose=greedy,
        max_new_tokens=12,
        eos_id=loaded.tokenizer.eos_id,
        pad_id=loaded.tokenizer.pad_id,
        vocabulary=len(loaded.tokenizer),
    )


def test_one_pass_gives_the_rows_of_step_by_step_decoding(loaded):
    """1e-5 for one sample, as asked; in a batch the padding adds to the rounding of either side."""
    cases = [golden_request(case) for case in GENERATION["cases"]]
    pixels = loaded.image_processor.batch([frame for frame, _ in cases])
    prompts = [expand(prompt_ids(loaded, question(action)), 256) for _, action in cases]
    with torch.inference_mode():
        features = loaded.model.image_features(pixels)
    for group, tolerance in (([0], 1e-5), ([1], 1e-5), ([2], 1e-5), ([0, 1, 2], 5e-5)):
        asked = [prompts[k] for k in group]
        written = step_by_step(loaded, asked, features[group])
        last = written[-1]
        last.ids, last.rows = last.ids[:3], last.rows[:3]  # unequal lengths
        rows = text_rows(loaded.model, asked, [w.ids for w in written], features[group], 0)
        for found, expected in zip(rows, written, strict=True):
            torch.testing.assert_close(found, expected.rows, atol=tolerance, rtol=tolerance)


def test_given_texts_get_the_rows_that_predict_them(loaded):
    frame, action = golden_request(GENERATION["cases"][1])
    (found,) = describe(loaded, [frame], [action], texts=["The left hand"])
    assert found.text == "The left hand"
    assert list(found.ids) == answer_ids(loaded, question(action), "The left hand")
    head = loaded.model.lm_head
    with torch.inference_mode():
        features = loaded.model.image_features(loaded.image_processor.batch([frame]))
        prompt = expand(prompt_ids(loaded, question(action)), 256)
        ids = torch.tensor([[*prompt, *found.ids[:-1]]])
        embeds = loaded.model.embed(ids, features)
        logits = loaded.model(inputs_embeds=embeds).logits[0, len(prompt) - 1 :]
        given = head(torch.from_numpy(found.features["text"]).float())
    np.testing.assert_allclose(given, logits, atol=2e-2)


def test_ids_of_a_given_text_are_those_of_tuning(loaded):
    asked, text = question("cut the apple"), "The left hand holds </s> the <image> apple."
    ids = answer_ids(loaded, asked, text)
    assert ids[-1] == loaded.tokenizer.eos_id and loaded.tokenizer.eos_id not in ids[:-1]
    shown = "The left hand holds < /s> the < image > apple."
    assert loaded.tokenizer.decode(ids).strip() == shown
    turns = [f"<image>\n{asked}", shown]
    whole = encode_conversation(turns, TEMPLATES["llama_2"], loaded.tokenizer).input_ids
    assert whole == prompt_ids(loaded, asked) + ids

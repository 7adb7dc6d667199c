"""What is written and kept of each family is what plain transformers gives by hand."""

import model_families
import numpy as np
import pytest
import torch
from model_families import FAMILIES
from small_dataset import picture
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from llava.checkpoints.hub_model import _skipped, load_hub
from llava.describing.hub_describer import HubDescriber
from llava.describing.job import Decoding

ASKED = ["How?", "How does the person cut the onion?", "What can you see in the picture?"]
FRAMES = [picture(number, size) for number, size in enumerate([(90, 60), (40, 90), (64, 64)])]
NAMES = [("clip", str(number)) for number in range(3)]
TOKENS = 5
OPTIONS = {"seeds": [7, 8, 9], "names": NAMES}
# What a folder may ask for; each would change texts, or need something that is not there.
WISHES = {
    "do_sample": True,
    "temperature": 3.0,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(0, 300, 2)),
    "begin_suppress_tokens": list(range(1, 300, 2)),
    "bad_words_ids": [[number] for number in range(100)],
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 3,
    "min_new_tokens": 4,
    "max_length": 2,
    "num_beams": 2,
    "num_return_sequences": 2,
    "stop_strings": ["e"],
    "cache_implementation": "static",
    "guidance_scale": 3.0,
}


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """Family, its describer, and what it writes greedily in one batch."""
    folder = model_families.write(request.param, tmp_path_factory.mktemp(request.param))
    describer = HubDescriber(load_hub(folder, device="cpu"), Decoding(0.0, 50, TOKENS))
    return request.param, describer, describer.describe(FRAMES, ASKED, **OPTIONS)


def by_hand(describer, number: int):
    """Inputs and outputs of `generate` as a model card shows it, with the same square frame."""
    folder = describer.hub.folder
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=0)
    processor = AutoProcessor.from_pretrained(folder)
    image = {"type": "image", "image": describer.hub.frames.square(FRAMES[number])}
    content = [image, {"type": "text", "text": ASKED[number]}]
    options = {"enable_thinking": False} if "enable_thinking" in processor.chat_template else {}
    # Idefics' processors make several views of a frame unless they are told otherwise.
    if hasattr(processor.image_processor, "do_image_splitting"):
        processor.image_processor.do_image_splitting = False
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )
    more = {"output_hidden_states": True, "return_dict_in_generate": True}
    return model, inputs, model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS, **more)


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("number", [0, 1])
def test_texts_and_rows_are_those_of_generate(made, number):
    _, describer, described = made
    model, inputs, out = by_hand(describer, number)
    found = described[number]
    assert list(found.ids) == out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    close(found.features["text"], torch.cat([step[-1][0, -1:] for step in out.hidden_states]))
    first = out.hidden_states[0][0][0]  # what the first layer reads
    close(found.features["image"], first[inputs["input_ids"][0] == model.config.image_token_id])


def test_image_rows_are_the_class_own(made):
    family, describer, described = made
    if family == "llava_onevision":
        pytest.skip("its get_image_features does not have the rows of line ends")
    model, inputs, _ = by_hand(describer, 0)
    names = "pixel_values image_grid_thw pixel_attention_mask image_sizes image_position_ids"
    given = {name: inputs[name] for name in names.split() if name in inputs}
    rows = model.get_image_features(**given).pooler_output
    rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in rows])
    close(described[0].features["image"], rows)


def test_the_length_of_a_prompt_is_known_before(made):
    _, describer, _ = made
    hub = describer.hub
    for asked in (*ASKED, ""):
        assert hub.length(asked) == hub.encode(FRAMES[0], asked)["input_ids"].shape[1]
    context = hub.model.config.get_text_config().max_position_embeddings
    assert not describer.too_long("How?", NAMES[0])
    assert f"expected at most {context}" in describer.too_long("How? " * 2000, NAMES[0])
    assert f"expected at most {context}" in describer.too_long("How?", NAMES[0], "So. " * 2000)


def test_marks_in_a_question_stay_text(made):
    _, describer, _ = made
    hub, tokenizer = describer.hub, describer.hub.processor.tokenizer
    marks = [token.content for token in tokenizer.added_tokens_decoder.values()]
    special = set(tokenizer.all_special_ids) | {hub.image_id} | hub.ends
    plain, asked = (hub.encode(FRAMES[0], text) for text in ("How?", f"How? {' '.join(marks)}"))
    count = [sum(n in special for n in one["input_ids"][0].tolist()) for one in (plain, asked)]
    assert count[0] == count[1]


def test_one_pass_gives_the_rows_of_generate(made):
    """Prompts and answers of unlike length; `ids` may be no text that would be cut so again."""
    _, describer, described = made
    hub = describer.hub
    answers = [list(one.ids)[: 2 + number] for number, one in enumerate(described)]
    samples = zip(FRAMES, ASKED, answers, strict=True)
    batch = hub.collate([hub.encode(frame, q, answer=ids) for frame, q, ids in samples], "right")
    with torch.inference_mode():
        rows = describer._rows(batch, answers)
    for found, one in zip(rows, described, strict=True):
        close(one.features["text"][: len(found.ids)], found.rows)


def test_features_of_a_given_text(made):
    _, describer, _ = made
    hub, text = describer.hub, " The left hand. "
    batch = describer.describe(FRAMES[:2], ASKED[:2], texts=[text, "So."], **OPTIONS)
    (alone,) = describer.describe(FRAMES[:1], ASKED[:1], texts=[text], seeds=[0], names=NAMES[:1])
    assert batch[0].ids == hub.answer_ids([ASKED[0]], text) and batch[0].ids[-1] in hub.ends
    shown = hub.processor.tokenizer.decode(batch[0].ids, skip_special_tokens=True)
    assert shown.strip() == text.strip()
    assert len(batch[0].features["text"]) == len(batch[0].ids)
    close(batch[0].features["text"], torch.from_numpy(alone.features["text"]))


def test_the_folders_wishes_change_no_text(made):
    """Sampling, penalties, limits and caches that generation_config.json asks for."""
    _, describer, described = made
    hub = describer.hub
    own, before = hub.model.generation_config, hub.ends
    wished = GenerationConfig(eos_token_id=own.eos_token_id, **WISHES)
    hub.model.generation_config = wished
    try:
        again = describer.describe(FRAMES, ASKED, **OPTIONS)
        assert hub.model.generation_config is wished, "a tuned folder keeps its wishes"
    finally:
        hub.model.generation_config = own
    assert [list(one.ids) for one in again] == [list(one.ids) for one in described]
    assert hub.ends == before


def test_an_end_mark_ends_one_text_of_a_batch(made):
    _, describer, described = made
    hub, end = describer.hub, list(described[1].ids)[2]
    ends = hub.ends
    hub.__dict__["ends"] = {end}
    try:
        again = describer.describe(FRAMES, ASKED, **OPTIONS)
    finally:
        hub.__dict__["ends"] = ends
    for one, before in zip(again, described, strict=True):
        ids = list(before.ids)
        assert list(one.ids) == (ids[: ids.index(end) + 1] if end in ids else ids)
        assert len(one.features["text"]) == len(one.ids)


def test_half_precision_and_another_attention(made):
    _, describer, described = made
    folder = describer.hub.folder
    exact, rounded = {"image": 1e-2, "text": 1e-2}, {"image": 0.2}
    for dtype, attn, allowed in (("float32", "eager", exact), ("bfloat16", "sdpa", rounded)):
        hub = load_hub(folder, device="cpu", dtype=dtype, attn=attn)
        again = HubDescriber(hub, describer.settings).describe(FRAMES, ASKED, **OPTIONS)
        for one, before in zip(again, described, strict=True):
            assert np.isfinite(one.features["text"]).all()
            for name, share in allowed.items():
                found, wanted = one.features[name][0], before.features[name][0]
                assert np.abs(found - wanted).max() < share * np.abs(wanted).max(), (dtype, name)
    assert hub.model.dtype == torch.bfloat16


def test_what_quantization_leaves_alone(made):
    """Linear layers of vision, projector and head; those of the language model's blocks are not."""
    _, describer, _ = made
    model = describer.hub.model
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    inside = set(decoder.modules())
    skipped = _skipped(model.config)
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    for name, part in layers:
        left = any(name == apart or name.startswith(f"{apart}.") for apart in skipped)
        assert left == (part not in inside), name
    assert [name for name, part in layers if part is head][0] in skipped


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_spread_over_memory_and_disk(tmp_path, family):
    folder = model_families.write(family, tmp_path / "model")
    plain = HubDescriber(load_hub(folder, device="cpu"), Decoding(0.0, 50, TOKENS))
    memory = {"cpu": 150_000}
    for places in ({"device_map": {"": "cpu"}}, {"device_map": "auto", "max_memory": memory}):
        hub = load_hub(folder, device="cpu", offload_folder=tmp_path / "disk", **places)
        spread = HubDescriber(hub, plain.settings)
        assert spread.provenance == plain.provenance
        one, other = (d.describe(FRAMES, ASKED, **OPTIONS) for d in (plain, spread))
        for a, b in zip(one, other, strict=True):
            assert a.text == b.text and np.array_equal(a.features["image"], b.features["image"])
    assert "disk" in hub.model.hf_device_map.values()


def test_a_thinking_model_does_not_think(tmp_path):
    hub = load_hub(model_families.write("qwen3_5", tmp_path), device="cpu")
    assert hub.prompt(["How?"]).endswith("<think>\n</think>\n\n")
    thoughts = hub.processor.tokenizer.decode(hub.answer_ids(["How?"], "So."))
    assert thoughts == "So.<|im_end|>"

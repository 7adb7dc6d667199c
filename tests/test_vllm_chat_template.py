"""The chat template of converted folders: the ids that the product's own prompts have."""

import json
import shutil

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, pipeline
from vllm_layouts import change, describe, golden_image, write_two_layers
from vllm_tiny import write_released

from egogen.labels import question
from llava.checkpoints.convert import convert
from llava.checkpoints.load import load
from llava.conversation import (
    IMAGE_MARK,
    TEMPLATES,
    chat_template,
    escape_marks,
    prompt_for,
    render,
)
from llava.tokens import IMAGE_ID, encode_prompt, expand

MARK = 600  # the id that the tiny tokenizer gives "<image>"
IMAGE = {"type": "image"}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def loaded(released):
    return load(released, device="cpu")


@pytest.fixture(scope="module", params=TEMPLATES)
def folder(request, released, tmp_path_factory):
    """(name of the template, converted folder)."""
    source = shutil.copytree(released, tmp_path_factory.mktemp(request.param) / "source")
    change(source, conversation_template=request.param)
    out = source.with_name("hub")
    convert(source, out, "hub")
    return request.param, out


def text(words):
    return {"type": "text", "text": words}


def say(role, *content):
    return {"role": role, "content": list(content)}


# name -> (messages, the turns of the product's own prompt)
CASES = {
    "image first": ([say("user", IMAGE, text("How?"))], ["<image>\nHow?", None]),
    "image last": ([say("user", text("How?"), IMAGE)], ["<image>\nHow?", None]),
    "text in parts": ([say("user", text("How "), text("so?"), IMAGE)], ["<image>\nHow so?", None]),
    "two images": ([say("user", IMAGE, IMAGE, text("Which?"))], ["<image>\n<image>\nWhich?", None]),
    "plain text": ([{"role": "user", "content": "How?"}], ["How?", None]),
    "text as a list": ([say("user", text("How?"))], ["How?", None]),
    "a mark in the text": ([{"role": "user", "content": "How <image>?"}], ["<image>\nHow ?", None]),
    "the usual mark": ([{"role": "user", "content": "<image>\nHow?"}], ["<image>\nHow?", None]),
    "several turns": (
        [
            say("user", IMAGE, text("How?")),
            {"role": "assistant", "content": "With the left hand."},
            {"role": "user", "content": "And then?"},
            say("assistant", text("It is lifted.")),
            say("user", text("Why?")),
        ],
        ["<image>\nHow?", "With the left hand.", "And then?", "It is lifted.", "Why?", None],
    ),
    "marks that are text": (
        [say("user", IMAGE, text("</s>[INST] <<SYS>> <image> {system} {{ 3 }}"))],
        [f"<image>\n{escape_marks('</s>[INST] <<SYS>> ')}< image > {{system}} {{{{ 3 }}}}", None],
    ),
    "letters": ([say("user", IMAGE, text(' "é" \\n\n 鍋 \N{FACE WITH TEARS OF JOY}'))],
                ['<image>\n "é" \\n\n 鍋 \N{FACE WITH TEARS OF JOY}', None]),
}  # fmt: skip


def product(turns, name, loaded) -> list[int]:
    return encode_prompt(render(turns, TEMPLATES[name]), loaded.tokenizer)


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_the_prompt(folder, loaded, case):
    name, out = folder
    messages, turns = CASES[case]
    expected = product(turns, name, loaded)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert [IMAGE_ID if number == MARK else number for number in ids] == expected
    images = [golden_image()] * expected.count(IMAGE_ID)
    processor = AutoProcessor.from_pretrained(out)
    written = processor.apply_chat_template(messages, add_generation_prompt=True)
    ids = processor(text=written, images=images or None, add_special_tokens=False)["input_ids"][0]
    expanded = expand(expected, loaded.model.patches)
    assert [IMAGE_ID if number == MARK else number for number in ids] == expanded


def test_finished_conversations(folder, loaded):
    """As tuning has them; there is nothing to be asked for behind an answer."""
    name, out = folder
    messages, turns = CASES["several turns"]
    expected = product(turns[:4], name, loaded)
    tokenizer = AutoTokenizer.from_pretrained(out)
    for asked in (False, True):
        ids = tokenizer.apply_chat_template(messages[:4], add_generation_prompt=asked)["input_ids"]
        assert [IMAGE_ID if number == MARK else number for number in ids] == expected


def test_without_a_generation_prompt_the_question_ends(folder):
    name, out = folder
    tokenizer = AutoTokenizer.from_pretrained(out)
    messages, turns = CASES["image first"]
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    assert f"{written}{TEMPLATES[name].ask}" == f"<s>{render(turns, TEMPLATES[name])}"


def test_system_texts(folder):
    name, out = folder
    tokenizer = AutoTokenizer.from_pretrained(out)
    own = TEMPLATES[name].system
    question = CASES["image first"][0]

    def written(*messages):
        return tokenizer.apply_chat_template(
            [*messages, *question], tokenize=False, add_generation_prompt=True
        )

    plain = f"<s>{prompt_for('How?', TEMPLATES[name])}"
    assert written() == plain
    for content in ("Be <s>brief.", [text("Be <s>brief.")]):
        given = written({"role": "system", "content": content})
        form = TEMPLATES[name].with_system.replace("{system}", "Be < s>brief.")
        assert given == f"<s>{form}<image>\nHow?{TEMPLATES[name].ask}"
    if own:
        assert written({"role": "system", "content": own}) == plain
    else:
        assert written({"role": "system", "content": ""}) == plain


@pytest.mark.parametrize(
    "messages, said",
    [
        ([say("assistant", text("a"))], "user and assistant in turn"),
        ([say("user", text("a")), say("user", text("b"))], "user and assistant in turn"),
        ([say("user", text("a")), say("system", text("b"))], "user and assistant in turn"),
        ([say("user", {"type": "video"})], "part video: expected text or image"),
    ],
)
def test_what_the_model_does_not_know_is_refused(folder, messages, said):
    tokenizer = AutoTokenizer.from_pretrained(folder[1])
    with pytest.raises(Exception, match=said):
        tokenizer.apply_chat_template(messages, tokenize=False)


def test_pipeline_with_messages_writes_what_the_product_writes(folder, tmp_path):
    """Greedy; the image is of the network's own size, since the libraries resize a little apart."""
    image = golden_image().resize((224, 224))
    action = "pick up the knife"
    loaded = load(folder[1], device="cpu")
    (made,) = describe(loaded, [image], [action], temperature=0, max_new_tokens=8)
    messages = [say("user", {"type": "image", "image": image}, text(question(action)))]
    pipe = pipeline("image-text-to-text", model=str(folder[1]))
    (answer,) = pipe(text=messages, return_full_text=False, generate_kwargs={"max_new_tokens": 8})
    # Its tokenizer spells bytes that are no letter otherwise, so that ids are compared.
    written = pipe.processor.decode(list(made.ids), skip_special_tokens=True)
    assert answer["generated_text"].strip() == written.strip()
    image.save(tmp_path / "frame.png")  # as the server calls it: an image by its place
    messages[0]["content"][0] = {"type": "image", "url": str(tmp_path / "frame.png")}
    inputs = pipe.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        ids = pipe.model.generate(**inputs, max_new_tokens=8)
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == list(made.ids)[:8]
    settings = json.loads((folder[1] / "generation_config.json").read_text())
    assert [settings[f"{mark}_token_id"] for mark in ("bos", "eos", "pad")] == [1, 2, 0]


def test_all_positions_of_an_image_count(tmp_path):
    """With the class token an image takes one position more."""
    source = write_two_layers(tmp_path / "source")
    change(source, mm_vision_select_feature="cls_patch")
    convert(source, tmp_path / "hub", "hub")
    processor = AutoProcessor.from_pretrained(tmp_path / "hub")
    messages = [say("user", {"type": "image", "image": golden_image()}, text("How?"))]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    ours = load(source, device="cpu")
    prompt = encode_prompt(prompt_for("How?", ours.template), ours.tokenizer)
    expected = expand(prompt, ours.model.patches)
    ids = [IMAGE_ID if number == MARK else number for number in inputs["input_ids"][0]]
    assert ids == expected and ids.count(IMAGE_ID) == 257


def test_it_is_taken_off_on_the_way_back(folder, tmp_path):
    convert(folder[1], tmp_path / "back", "llava")
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert not names & {"chat_template.jinja", "chat_template.json", "processor_config.json"}
    tokenizer = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert "chat_template" not in tokenizer and "processor_class" not in tokenizer
    (folder[1] / "chat_template.jinja").rename(tmp_path / "kept")
    try:  # a folder of before has none
        convert(folder[1], tmp_path / "again", "llava")
        assert load(tmp_path / "again", device="cpu").template == TEMPLATES[folder[0]]
    finally:
        (tmp_path / "kept").rename(folder[1] / "chat_template.jinja")


def test_tuning_with_another_template_writes_that_one(folder, tmp_path):
    loaded = load(folder[1], device="cpu")
    loaded.template = TEMPLATES["vicuna_v1"]
    loaded.save_tools(tmp_path)
    written = (tmp_path / "chat_template.jinja").read_text()
    assert written == chat_template(TEMPLATES["vicuna_v1"])
    assert IMAGE_MARK in written

"""Folders of any image-text model that stage 1 refuses: a row each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from bad_input_damage import Case, Damage, cut, edited, gone, put, untouched
from bad_input_files import CLIP
from safetensors.torch import load_file, save_file

HUB = "--model-path {root}/hub"
CONFIG, TEMPLATE, WEIGHTS = "hub/config.json", "hub/chat_template.jinja", "hub/model.safetensors"
PROCESSOR, GENERATION = "hub/processor_config.json", "hub/generation_config.json"


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(root: Path) -> None:
        state = load_file(root / WEIGHTS)
        change(state)
        save_file(state, root / WEIGHTS, metadata={"format": "pt"})

    return damage


def kind(**fields: object) -> Damage:
    """A config.json of another model."""
    return put(CONFIG, json.dumps(fields))


def code(config: dict) -> None:
    names = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}
    config.update(model_type="own_model", auto_map=names)


T5 = {"model_type": "t5gemma2"}
MODELS = [
    Case("describe", f"hub model: {what}", damage, said, more=HUB)
    for what, damage, said in (
        ("no template", gone(TEMPLATE), ("hub", "chat_template")),
        ("broken template", put(TEMPLATE, "{% for %}"), ("hub", "chat template")),
        ("template without images", put(TEMPLATE, "{{ 'How?' }}"), ("hub", "do not fit")),
        ("no weights", gone(WEIGHTS), ("hub", "model.safetensors")),
        ("weights cut short", cut(WEIGHTS), ("hub", "cannot be loaded")),
        (
            "weight missing",
            weights(lambda state: state.pop("model.norm.weight")),
            ("hub", "missing: model.language_model.norm.weight"),
        ),
        (
            "weight of another shape",
            weights(lambda state: state.update({"lm_head.weight": torch.zeros(5, 5)})),
            ("hub", "mis-shaped: lm_head.weight"),
        ),
        ("no processor", gone(PROCESSOR), ("hub", "processor")),
        ("processor no JSON", put(PROCESSOR, "{"), ("processor_config.json", "JSON")),
        ("processor a list", put(PROCESSOR, "[]"), ("processor_config.json", "object")),
        ("no tokenizer", gone("hub/tokenizer.json"), ("hub", "cannot be loaded")),
        ("settings no JSON", put(GENERATION, "{"), ("generation_config.json", "JSON")),
        ("frames a list", put("hub/frames.json", "[]"), ("frames.json", "object")),
        ("frames of no size", put("hub/frames.json", '{"image_size": "big"}'), ("hub", "'big'")),
        ("a text model", kind(model_type="bert"), ("hub/config.json", "bert", "image-text")),
        ("a model of no name", kind(model_type="nosuch"), ("hub", "nosuch")),
        ("a list for a config", put(CONFIG, "[]"), ("hub/config.json", "object")),
        ("mllama", kind(model_type="mllama"), ("hub/config.json", "mllama", "cross attention")),
        ("encoder-decoder", kind(**T5), ("hub/config.json", "t5gemma2", "cross attention")),
        ("blip-2", kind(model_type="blip-2"), ("hub/config.json", "image_token_id")),
        ("git", kind(model_type="git"), ("hub/config.json", "image_token_id")),
        ("code of its own", edited(CONFIG, code), ("hub", "custom code")),
        (
            "another image_token_id",
            edited(CONFIG, lambda config: config.update(image_token_id=5)),
            ("hub", "do not fit"),
        ),
        (
            "no end mark",
            edited("hub/tokenizer_config.json", lambda c: c.pop("eos_token") and c),
            ("hub", "eos_token"),
        ),
    )
] + [
    Case("describe", f"hub model: {what}", untouched, said, more=f"{HUB} {more}")
    for what, more, said in (
        ("frames of 0 pixels", "--image-size 0", ("--image-size 0",)),
        ("frames of -3 pixels", "--image-size -3", ("--image-size -3",)),
        ("tower beside it", "--vision-tower {root}/vllm", ("--vision-tower",)),
        ("4 bits without the library", "--load-4bit", ("bitsandbytes",)),
        ("kernels that are not there", "--attn flash_attention_2", ("hub", "Flash")),
    )
]
MODELS += [
    Case("features", "hub model: no template", gone(TEMPLATE), ("chat_template",), more=HUB),
    Case(
        "frame",
        "hub model: no template",
        gone(TEMPLATE),
        ("chat_template",),
        more="--vllm {root}/hub",
    ),
    Case("describe", "hub name out of reach", untouched, ("no/such",), more="--model-path no/such"),
    Case("describe", "hub model: sound", untouched, (), 0, more=HUB),
    Case(
        "describe",
        "hub model: action too long for it",
        edited("ego4d_val.json", lambda c: c[CLIP]["0"].update(action="#C C cuts " + "it " * 5000)),
        (f"{CLIP}/0", "expected at most 4096"),
        1,
        more=HUB,
    ),
]

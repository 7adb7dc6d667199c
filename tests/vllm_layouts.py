"""The tiny checkpoint in other layouts, and what a model says about one image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from recipe import image, tensor
from safetensors.torch import save_file
from vllm_tiny import read, released_state, write_released

from egogen.labels import clean_label, question
from llava.describing.decoding import Decoding
from llava.describing.llava_describer import LlavaDescriber, prompt_ids
from llava.tokens import expand

CASE = read("generation.json")["cases"][0]


def write_two_layers(folder: Path) -> Path:
    """LLaVA-1.5: two projector layers, in the layout of its authors."""
    write_released(folder)
    state = {k: v for k, v in released_state().items() if "mm_projector" not in k}
    for layer, width in ((0, 32), (2, 64)):
        for kind, shape in (("weight", [64, width]), ("bias", [64])):
            name = f"model.mm_projector.{layer}.{kind}"
            state[name] = torch.from_numpy(tensor(name, shape))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder, mm_projector_type="mlp2x_gelu")
    return folder


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def golden_image() -> Image.Image:
    return Image.fromarray(image(CASE["image"], CASE["height"], CASE["width"], CASE["seed"]))


def golden_request(case: dict) -> tuple[Image.Image, str]:
    """Image and action of one of the released generations."""
    made = image(case["image"], case["height"], case["width"], case["seed"])
    return Image.fromarray(made), clean_label(case["label"], "ego4d", "released")


def describe(loaded, images, actions, texts=None, seeds=None, **settings):
    """Descriptions of one batch: of `texts`, or written by the model with these settings."""
    return LlavaDescriber(loaded, Decoding(**settings)).describe(
        images,
        [question(action) for action in actions],
        seeds=seeds or [0] * len(actions),
        names=[("clip", str(row)) for row in range(len(actions))],
        texts=texts,
    )


def outcome(loaded) -> tuple[list[int], np.ndarray]:
    """Greedy ids and the last logits about one image."""
    pixels = loaded.image_processor.batch([golden_image()])
    prompt = prompt_ids(loaded, question(CASE["cleaned"]))
    ids = torch.tensor([expand(prompt, loaded.model.patches)])
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, pixel_values=pixels).logits[0, -1]
    (described,) = describe(
        loaded, [golden_image()], [CASE["cleaned"]], temperature=0, max_new_tokens=6
    )
    return described.ids, logits[: len(loaded.tokenizer)].float().numpy()


def assert_same(loaded, reference, atol=0.0):
    (ids, logits), (other_ids, other_logits) = outcome(loaded), outcome(reference)
    assert ids == other_ids
    np.testing.assert_allclose(logits, other_logits, atol=atol, rtol=0)


def bin_shards(state, folder, shards=3):
    """`pytorch_model-*.bin` with their index, as large checkpoints are released."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, places = sorted(state), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = {name: state[name] for name in names[number::shards]}
        places |= dict.fromkeys(part, file)
        torch.save(part, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

"""Texts of a real server, and a hub folder that serves: what a user would type on either side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from real_server import serving_folder
from small_describer import DATASET, TEXTS, describe_words, feature_words, write_tuned
from small_tuning import ROOT
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from egogen import layout
from egogen.actions import read_actions
from egogen.errors import EgoGenError
from egogen.features.store import open_store
from egogen.labels import clean_label, question
from egogen.served import message
from llava.describing.results import chunk_files, merge_results
from llava.eval.make_features import main as make_features
from llava.eval.run_llava_in_loop import main as describe

GREEDY = ["--temperature", "0", "--max-new-tokens", "40"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Frames, and the tuned folder in both layouts: `tuned` and `hub`, as a user converts it."""
    root = tmp_path_factory.mktemp("data")
    tuned = write_tuned(root)
    script = ROOT / "vllm" / "scripts" / "convert_checkpoint.py"
    line = [sys.executable, script, tuned, root / "hub", "--to", "hub"]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "vllm")))
    subprocess.run(list(map(str, line)), env={**os.environ, "PYTHONPATH": path}, check=True)
    return root


@pytest.fixture(scope="module")
def server(root):
    """Words that name the served model."""
    with serving_folder(root / "hub", root / "log.txt") as address:
        yield ["--engine", "openai", "--base-url", address, "--model", root / "hub"]


@pytest.fixture(scope="module")
def local(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("local")
    words = describe_words(root, out, "--model-path", root / "tuned", *feature_words(out))
    assert describe([*words, *GREEDY]) == 0
    return out


def texts(out: Path) -> list[str]:
    merged = merge_results(chunk_files(out / "chunks" / "val"))
    return [fields["description"] for actions in merged.values() for fields in actions.values()]


def features(root: Path, out: Path) -> list[np.ndarray]:
    entries = read_actions(layout.action_file(root, DATASET, "val"))
    return [open_store(out / kind).read(e.image_0) for kind in ("image", "text") for e in entries]


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=4e-3, rtol=2e-3)


def test_the_model_says_what_it_was_taught(local):
    assert texts(local) == list(TEXTS)


@pytest.mark.parametrize("weights", ["tuned", "hub"])
def test_texts_and_features_are_those_of_the_loop(root, server, local, tmp_path, weights):
    words = describe_words(root, tmp_path, "--model-path", root / weights, *server)
    words += map(str, feature_words(tmp_path))
    assert describe([*words, *GREEDY, "--batch-size", "3"]) == 0
    assert texts(tmp_path) == texts(local)
    assert_close(features(root, tmp_path), features(root, local))


def test_texts_first_and_features_later(root, server, local, tmp_path):
    """In two chunks, without any weights here; merged, then features by the weights."""
    for number in ("1", "2"):
        words = describe_words(root, tmp_path, *server, "--text-only", "--num-chunks", "2")
        assert describe([*words, *GREEDY, "--chunk-idx", number]) == 0
    assert texts(tmp_path) == texts(local)
    script = ROOT / "vllm" / "scripts" / "merge_inference_results.py"
    merged = tmp_path / "merged.json"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "vllm")))
    subprocess.run(
        [sys.executable, str(script), str(tmp_path / "chunks" / "val"), "--output", str(merged)],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    label = layout.action_file(root, DATASET, "val")
    words = ["--model-path", root / "tuned", "--descriptions", merged, "--action-label", label]
    words += ["--image-dir", layout.frame_folder(root, DATASET, "val"), "--device", "cpu"]
    assert make_features([str(word) for word in (*words, *feature_words(tmp_path))]) == 0
    assert_close(features(root, tmp_path), features(root, local))
    at_once = tmp_path / "at once"
    words = describe_words(root, at_once, "--model-path", root / "tuned", *server)
    assert describe([*words, *GREEDY, *map(str, feature_words(at_once))]) == 0
    for one, other in zip(features(root, tmp_path), features(root, at_once), strict=True):
        assert np.array_equal(one, other)


def test_this_server_takes_no_top_k(root, server, tmp_path):
    """One line says so, nothing is recorded, and --request leaves it out."""
    words = describe_words(root, tmp_path, *server, "--text-only", "--max-new-tokens", "40")
    with pytest.raises(EgoGenError, match="--base-url: no answer .422 .*top_k"):
        describe(words)
    assert not list(tmp_path.rglob("*.json*"))
    assert describe([*words, "--request", '{"top_k": null}']) == 0
    assert len(texts(tmp_path)) == 4


def test_another_model_than_the_server_has(root, server, tmp_path):
    words = describe_words(root, tmp_path, *server[:-1], "other", "--text-only", *GREEDY)
    with pytest.raises(EgoGenError, match="--base-url: no answer .400 .*Server is pinned to"):
        describe([*words, "--retries", "0"])
    assert not list(tmp_path.rglob("*.json*"))


# --- the converted folder elsewhere


def asked(root: Path) -> list[tuple[Path, str]]:
    """Frame and question of each action."""
    frames = layout.frame_folder(root, DATASET, "val")
    entries = read_actions(layout.action_file(root, DATASET, "val"))
    return [(frames / e.image_0, question(clean_label(e.label, DATASET))) for e in entries]


def talk(image: object, text: str) -> list[dict]:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def test_pipeline_with_messages(root):
    pipe = pipeline("image-text-to-text", model=str(root / "hub"))
    said = [
        pipe(text=talk(str(frame), text), max_new_tokens=40, return_full_text=False)
        for frame, text in asked(root)
    ]
    assert [answer[0]["generated_text"].strip() for answer in said] == list(TEXTS)


def test_model_and_processor_by_their_auto_classes(root):
    """In one batch: what pads the shorter answers is skipped with the other marks."""
    processor = AutoProcessor.from_pretrained(root / "hub")
    model = AutoModelForImageTextToText.from_pretrained(root / "hub")
    messages = [talk(Image.open(frame), text) for frame, text in asked(root)]
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=40)[:, inputs["input_ids"].shape[1] :]
    said = processor.batch_decode(ids, skip_special_tokens=True)
    assert [text.strip() for text in said] == list(TEXTS)


def test_the_openai_client(root, server):
    client = openai.OpenAI(base_url=server[3], api_key="none")
    assert client.models.list().object == "list"  # of the hub's cache, which is empty here
    for (frame, text), expected in zip(asked(root), TEXTS, strict=True):
        with Image.open(frame) as image:
            request = [message(text, image)]
        answer = client.chat.completions.create(
            model=str(server[5]), messages=request, max_tokens=40, temperature=0
        )
        assert answer.choices[0].message.content.strip() == expected
        assert answer.choices[0].finish_reason == "stop"


def test_chat_template_in_another_process(root):
    """With transformers alone, as a serving engine reads it: nothing of this project is there."""
    code = (
        "import json, sys\nfrom transformers import AutoProcessor\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1])\n"
        "messages = json.loads(sys.argv[2])\n"
        "print(processor.apply_chat_template(messages, add_generation_prompt=True), end='')\n"
    )
    (_, text), *_ = asked(root)
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    messages = json.dumps([{"role": "user", "content": parts}])
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    line = [sys.executable, "-c", code, str(root / "hub"), messages]
    done = subprocess.run(line, env=plain, cwd=root, capture_output=True, text=True, check=True)
    from llava.checkpoints.load import load
    from llava.conversation import prompt_for

    assert done.stdout == f"<s>{prompt_for(text, load(root / 'tuned', device='cpu').template)}"

"""What texts, features and tuned weights depend on: a folder goes on by an equal origin only."""

import json

import numpy as np
import pytest
import torch
from small_dataset import write_split
from vllm_tiny import write_released

from egogen import layout
from egogen.errors import EgoGenError
from egogen.seeds import stable_seed
from llava.checkpoints.load import load
from llava.describing.decoding import Decoding
from llava.describing.describer import Description, Feature
from llava.describing.job import Job
from llava.describing.llava_describer import LlavaDescriber, fingerprint, model_info
from llava.describing.loop import run
from llava.describing.results import chunk_files, merge_results
from llava.train.arguments import parse
from llava.train.train import check_output, settings_of

DATASET = "ego4d"


class Telling:
    """A describer without a network: its text is the question and the seed; one feature."""

    name, provenance = "telling", {"model": "1"}

    def __init__(self, rows: int = 4, width: int = 8):
        self.features = {"near": Feature(width, rows)}
        self.shape, self.seen = (rows, width), []

    def too_long(self, question, name):
        return ""

    def describe(self, images, questions, *, seeds, names):
        self.seen += names
        made = np.ones(self.shape, np.float16)
        return [
            Description(f"{question} {seed}", {"near": made})
            for question, seed in zip(questions, seeds, strict=True)
        ]


@pytest.fixture
def root(tmp_path):
    write_split(tmp_path, DATASET, "val", clips=2, actions=2)
    return tmp_path


def job(root, **options) -> Job:
    return Job(
        image_dir=layout.frame_folder(root, DATASET, "val"),
        action_label=layout.action_file(root, DATASET, "val"),
        dataset=DATASET,
        save_path=root / "out" / "tiny" / "val",
        feature_paths={"near": root / "out" / "near"},
        **options,
    )


def texts(root) -> dict[str, str]:
    merged = merge_results(chunk_files(root / "out" / "tiny" / "val"))
    return {
        f"{clip}/{action}": fields["description"]
        for clip, actions in merged.items()
        for action, fields in actions.items()
    }


@pytest.mark.parametrize(
    "named, options",
    [
        ("query", {"query": "What about {}?"}),
        ("label_style", {"label_style": "released"}),
        ("seed", {"seed": 43}),
        ("num_chunks", {"num_chunks": 2}),
    ],
)
def test_texts_of_other_settings_are_not_continued(root, named, options):
    assert run(job(root), Telling()) == 0
    before = texts(root)
    again = Telling()
    with pytest.raises(EgoGenError, match=f"made with {named} .*, expected "):
        run(job(root, **options), again)
    assert not again.seen and texts(root) == before


def test_the_seed_of_a_text_is_of_clip_and_action(root):
    run(job(root), Telling())
    for key, text in texts(root).items():
        clip, _, action = key.partition("/")
        assert text.endswith(f" {stable_seed(42, clip, action)}")
    assert len(set(texts(root).values())) == 4


def test_an_entry_with_a_new_label_is_described_anew(root):
    """The others stay; so do features of the right shape."""
    run(job(root), Telling())
    before, path = texts(root), layout.action_file(root, DATASET, "val")
    content = json.loads(path.read_text())
    first = next(iter(content))
    content[first]["1"]["action"] = "#C C washes the plate"
    path.write_text(json.dumps(content))
    again = Telling()
    assert run(job(root), again) == 0 and again.seen == [(first, "1")]
    now = texts(root)
    assert "wash the plate" in now.pop(f"{first}/1")
    assert now == {key: text for key, text in before.items() if key != f"{first}/1"}


def test_features_of_another_number_of_rows_are_made_anew(root):
    """As files copied there by hand: the store's record says what they should be."""
    run(job(root), Telling())
    path = next((root / "out" / "near").rglob("*.npy"))
    np.save(path, np.ones((5, 8), np.float16))
    again = Telling()
    assert run(job(root), again) == 0 and len(again.seen) == 1
    assert np.load(path).shape == (4, 8)


def test_the_model_has_a_name_of_its_weights(tmp_path):
    """Projector, norm and head: what any tuning changes. And how it was loaded."""
    loaded = load(write_released(tmp_path / "model"), device="cpu")
    model = loaded.model
    parts = [
        model.model.multi_modal_projector.linear_1.weight,
        model.model.language_model.norm.weight,
        model.lm_head.weight,
    ]
    found = [fingerprint(model)]
    for part in parts:
        kept = part.detach().clone()
        with torch.no_grad():
            part.view(-1)[0] += 0.25
            found.append(fingerprint(model))
            part.copy_(kept)
    assert len(set(found)) == 4 and fingerprint(model) == found[0]
    known = {"model": found[0], "width": 64, "image_size": 224, "quantization": None}
    assert model_info(loaded) == known
    model.is_loaded_in_8bit = True
    assert model_info(loaded) == known | {"quantization": "8bit"}
    said = LlavaDescriber(loaded, Decoding(0.5, 7, 11)).provenance
    assert said.items() >= {"temperature": 0.5, "top_k": 7, "max_new_tokens": 11}.items()


BASE = "--model_name_or_path m --data_path d --image_folder i --output_dir o --report_to none"


@pytest.mark.parametrize(
    "named, words",
    [
        ("cut_rule", "--cut_rule released"),
        ("lr_rule", "--lr_rule released"),
        ("lora", "--lora_enable True"),
        ("lora", "--lora_enable True --lora_r 4"),
        ("version", "--version v1"),
        ("image_aspect_ratio", "--image_aspect_ratio pad"),
        ("model", "--model_name_or_path other"),
        ("data", "--data_path other"),
        ("learning_rate", "--learning_rate 0.5"),
        ("step_samples", "--per_device_train_batch_size 3"),
        ("step_samples", "--gradient_accumulation_steps 3"),
        ("model_max_length", "--model_max_length 99"),
        ("seed", "--seed 3"),
        ("warmup_steps", "--warmup_ratio 0.5"),
        ("lr_scheduler_type", "--lr_scheduler_type cosine"),
        ("weight_decay", "--weight_decay 0.5"),
        ("num_train_epochs", "--num_train_epochs 9"),
    ],
)
def test_tuning_of_other_settings_is_not_continued(tmp_path, named, words):
    begun = settings_of(parse(BASE.split()))
    if words.endswith("--lora_r 4"):
        begun = settings_of(parse([*BASE.split(), "--lora_enable", "True"]))
    (tmp_path / "tuning_settings.json").write_text(json.dumps(begun))
    assert check_output(tmp_path, begun) is False
    with pytest.raises(EgoGenError, match=rf"begun with other settings \({named} "):
        check_output(tmp_path, settings_of(parse([*BASE.split(), *words.split()])))


def test_what_does_not_decide_the_result_may_change(tmp_path):
    begun = settings_of(parse(BASE.split()))
    (tmp_path / "tuning_settings.json").write_text(json.dumps(begun))
    more = ["--save_steps", "7", "--logging_steps", "3", "--dataloader_num_workers", "2"]
    assert check_output(tmp_path, settings_of(parse([*BASE.split(), *more]))) is False
    (tmp_path / "finished.json").write_text("{}")
    assert check_output(tmp_path, begun) is True

"""Stage 1 against the numbers of the released code, computed with a tiny model."""

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import image
from vllm_batches import MARKED, encoded, tuning_batch
from vllm_layouts import describe
from vllm_tiny import DATA, read, write_released

from egogen.labels import clean_label, question
from llava.checkpoints.load import load
from llava.describing.decoding import distribution
from llava.describing.llava_describer import prompt_ids
from llava.image_processing import ImageProcessor
from llava.tokenizer import SentencePieceTokenizer
from llava.tokens import IMAGE_ID, collate, cut, encode_prompt

FORWARD, GENERATION, TOKENS = read("forward.json"), read("generation.json"), read("tokens.json")
LEGACY = pytest.mark.parametrize("legacy", [True, False])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(write_released(tmp_path_factory.mktemp("released")), device="cpu")


def frame_of(item: dict) -> Image.Image:
    return Image.fromarray(image(item["image"], item["height"], item["width"], item["seed"]))


@LEGACY
def test_ids_of_texts(legacy):
    tokenizer = SentencePieceTokenizer(DATA, legacy)
    for case in TOKENS["tokenizer_image_token"][f"legacy_{legacy}"]:
        assert encode_prompt(case["text"], tokenizer) == case["ids"], case["text"]


@LEGACY
def test_ids_and_targets_of_conversations(legacy):
    released = {item["id"]: item for item in TOKENS["samples"][f"legacy_{legacy}"]}
    for name, sample in encoded(legacy):
        if name not in MARKED:
            assert sample.input_ids == released[name]["input_ids"], name
            assert sample.labels == released[name]["labels"], name
        assert sample.targets


@LEGACY
def test_batches_with_the_released_cut(legacy):
    samples = [sample for _, sample in encoded(legacy)]
    for case in TOKENS["collated"][f"legacy_{legacy}"]:
        batch = collate([cut(samples[k], case["model_max_length"]) for k in case["samples"]], 0)
        for name in ("input_ids", "labels", "attention_mask"):
            np.testing.assert_array_equal(batch[name], case[name])


@pytest.mark.parametrize("item", read("vision.json")["pixels"], ids=lambda item: item["image"])
def test_pixels(item):
    golden = np.load(DATA / "pixels.npz")
    for aspect, suffix, stats in (("square", "", "stats"), ("pad", "__pad", "stats_pad")):
        values = ImageProcessor(224, aspect)(frame_of(item)).numpy()
        np.testing.assert_allclose(
            values[:, ::8, ::8], golden[item["image"] + suffix], atol=1e-5, rtol=0
        )
        assert np.abs(values.astype(np.float64)).sum() == pytest.approx(
            item[stats]["abs_sum"], rel=1e-6
        )


def test_image_features(loaded):
    golden = np.load(DATA / "image_features.npz")
    for item, rows, columns in zip(
        read("vision.json")["image_features"], (1, 4), (1, 2), strict=True
    ):
        pixels = loaded.image_processor.batch([frame_of(item)])
        with torch.no_grad():
            before = loaded.model.vision_features(pixels)[0]
            after = loaded.model.image_features(pixels)[0]
        name = item["image"]
        np.testing.assert_allclose(before[::rows], golden[f"{name}__pre"], atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(
            after[::rows, ::columns], golden[f"{name}__post"], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    "which, golden",
    [
        ((0, 1), FORWARD),
        ((4,), FORWARD["text_only_sample"]),
        ((2, 4), FORWARD["mixed_batch"]),
    ],
)
def test_loss(loaded, which, golden):
    with torch.no_grad():
        loss = loaded.model(**tuning_batch(loaded.image_processor, which)).loss
    assert float(loss) == pytest.approx(golden["loss"], abs=1e-4)


def test_logits_at_real_positions(loaded):
    golden = np.load(DATA / "forward.npz")
    batch = tuning_batch(loaded.image_processor, (0, 1))
    np.testing.assert_array_equal(batch["labels"], golden["expanded_labels"])
    labels, mask = batch.pop("labels"), batch["attention_mask"]
    assert mask.sum(1).tolist() == FORWARD["attention_mask_sum"]
    with torch.no_grad():
        logits = loaded.model(**batch).logits
    real = mask[:, ::7]
    strided = torch.from_numpy(golden["logits_strided"])
    torch.testing.assert_close(logits[:, ::7, ::5][real], strided[real], atol=1e-4, rtol=1e-4)
    wanted = labels[:, 1:] != -100
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1][wanted], labels[:, 1:][wanted], reduction="none"
    )
    np.testing.assert_allclose(loss, golden["token_loss"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", FORWARD["optimizer_steps"], ids=lambda case: str(case["lr"]))
def test_optimizer_steps(loaded, case, tmp_path):
    model = load(write_released(tmp_path), device="cpu").model.train()
    model.model.vision_tower.requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(p.numel() for p in learning) == FORWARD["trained_parameter_count"]
    optimizer = torch.optim.AdamW(learning, lr=case["lr"], weight_decay=0.0)
    batch = tuning_batch(loaded.image_processor, (0, 1))
    for step in case["steps"]:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        assert loss.item() == pytest.approx(step["loss"], abs=2e-3)
        assert float(norm) == pytest.approx(step["grad_norm_before_clip"], rel=2e-3)


@pytest.mark.parametrize("case", GENERATION["cases"], ids=lambda case: case["image"])
def test_greedy_description_and_features(loaded, case):
    golden = np.load(DATA / "generation.npz")
    action = clean_label(case["label"], "ego4d", "released")
    assert prompt_ids(loaded, question(action)) == case["input_ids"]
    length = GENERATION["new_tokens"]
    (described,) = describe(
        loaded, [frame_of(case)], [action], temperature=0, max_new_tokens=length
    )
    assert described.ids == case["new_ids"]
    assert described.text == case["json_entry"]["description"]
    expected = golden[f"{case['image']}__text_feature"]
    np.testing.assert_allclose(described.features["text"], expected, atol=4e-3)  # stored in half
    logits = golden[f"{case['image']}__step0_logits"]
    drawn = distribution(logits, 0.2, 50)
    ids = case["released_step0_top50_ids"]
    np.testing.assert_allclose(
        drawn[ids], case["released_step0_probs_temperature_0.2_top_k_50"], atol=1e-5
    )


def test_description_that_ends_by_itself(loaded):
    (case,) = read("generation_end.json")
    action, length = clean_label(case["label"], "ego4d", "released"), case["max_new_tokens"]
    (described,) = describe(
        loaded, [frame_of(case)], [action], temperature=0, max_new_tokens=length
    )
    assert described.ids == case["new_ids"]
    assert described.text == case["json_entry"]["description"]
    golden = np.load(DATA / "generation_end.npz")["eos_tiny_10__text_feature"]
    np.testing.assert_allclose(described.features["text"], golden, atol=4e-3)


def test_one_token_still_gives_rows(loaded):
    case = next(item for item in GENERATION["cases"] if item["image"] == "gen_e")
    (described,) = describe(
        loaded, [frame_of(case)], [case["cleaned"]], temperature=0, max_new_tokens=1
    )
    assert described.ids == GENERATION["one_token_case"]["new_ids"]
    assert described.features["text"].shape == (1, 64)


def test_prompt_has_one_image(loaded):
    assert prompt_ids(loaded, question("cut <image>")).count(IMAGE_ID) == 1

"""EgoVLP, EgoVLP+ and the text tower against the numbers of the released script.

Full-size networks, weights filled by the recipe that the golden numbers were computed with.
"""

import json
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import DATA, state_dict
from offline import offline  # noqa: F401 (no hidden downloads)
from PIL import Image
from word_piece_folder import write_vocabulary

from egogen.errors import EgoGenError
from metrics.frame_pairs import Pair, find_pairs
from metrics.loading import filled
from metrics.measures import egovlp
from metrics.measures.egovlp import GroupedAttention, word_pieces

FOLDER = {"ego4d": "ego4d.fho", "epickitchen": "epickitchen"}
MODES = {"no_context": egovlp.still_videos, "with_context": egovlp.videos_with_source}


def golden(name: str) -> tuple[dict, dict]:
    return json.loads((DATA / f"{name}.json").read_text()), np.load(DATA / f"{name}.npz")


def pairs_of(dataset: str) -> list[Pair]:
    root = DATA / dataset
    truth = root / "EgoGen" / FOLDER[dataset] / "val_gt_for_metric"
    return find_pairs(root / "run/images", truth, root / f"{dataset}_val.json").pairs


def author_config():
    """An object of a class that nobody else has, as a checkpoint of its author's training holds."""
    module = types.ModuleType("author_config")

    class ConfigParser:
        def __init__(self):
            self.resume, self.save_dir, self.levels = None, Path("/results"), {0: 30}

    ConfigParser.__module__, ConfigParser.__qualname__ = "author_config", "ConfigParser"
    module.ConfigParser = ConfigParser
    return module, ConfigParser()


def checkpoint(path: Path, state: dict) -> Path:
    """As EgoVLP's training wrote it: `module.` before every name, the author's class beside."""
    module, config = author_config()
    sys.modules["author_config"] = module
    try:
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": wrapped, "epoch": 1, "config": config}, path)
    finally:
        del sys.modules["author_config"]
    return path


@torch.inference_mode()
def compare(network, dataset: str, mode: str, numbers: range) -> None:
    """Class tokens, embeddings and similarities of the golden pairs `numbers`."""
    figures, arrays = golden(f"egovlp_{dataset}")
    pairs = {pair.key: pair for pair in pairs_of(dataset)}
    frames = list(figures[mode]["per_image"].items())
    for number in numbers:
        key, similarity = frames[number]
        videos = torch.stack(MODES[mode](pairs[key], egovlp.FRAMES[dataset]))
        tokens = network.video_model(videos)
        embedded = network.vid_proj(tokens)
        for row, side in enumerate(("gen", "gt")):
            for found, name in ((tokens, "cls768"), (embedded, "embed")):
                expected = arrays[f"{mode}_{side}_{name}"][number]
                np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-3)
        cosine = torch.cosine_similarity(embedded[:1], embedded[1:]).item()
        assert cosine == pytest.approx(similarity, abs=1e-4)


@pytest.mark.parametrize("dataset", FOLDER)
@pytest.mark.parametrize("mode", MODES)
def test_frames_that_the_network_sees(dataset, mode):
    _, arrays = golden(f"egovlp_{dataset}")
    frames = egovlp.FRAMES[dataset]
    videos = MODES[mode](pairs_of(dataset)[0], frames)
    for video, side in zip(videos, ("gen", "gt"), strict=True):
        assert video.shape == (frames, 3, 224, 224)
        for number in (0, frames - 1):
            expected = arrays[f"{mode}_first_{side}_video_frame{number}_stride14"]
            found = video[number, :, ::14, ::14].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ego4d_as_released_from_a_checkpoint_with_its_author_s_class(tmp_path):
    state = state_dict("egovlp_4f", "video_model|vid_proj")
    path = checkpoint(tmp_path / "egovlp.pth", state)
    network = egovlp.video_network(path, 4, "cpu")
    compare(network, "ego4d", "no_context", range(1))
    compare(network, "ego4d", "with_context", range(1, 2))
    assert egovlp.video_network(path, 4, "cpu") is network, "read once for both metrics"
    # The weights of the other dataset are for other videos.
    wrong = r"egovlp.pth: expected .* VideoTransformer: mis-shaped: video_model.temporal_embed \("
    with pytest.raises(EgoGenError, match=wrong):
        egovlp.video_network(path, 16, "cpu")


@pytest.mark.slow("metrics of all golden pairs")
@pytest.mark.timeout(7200)  # on a busy machine
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "dataset,manifest,count", [("ego4d", "egovlp_4f", 6), ("epickitchen", "egovlp_16f", 2)]
)
def test_all_golden_pairs_as_released(dataset, manifest, count, mode):
    make = partial(egovlp.VideoTransformer, egovlp.FRAMES[dataset])
    network = filled(make, state_dict(manifest, "video_model|vid_proj"), manifest)
    compare(network, dataset, mode, range(count))


@torch.inference_mode()
def test_who_attends_to_whom():
    torch.manual_seed(0)
    attention, frames, places = GroupedAttention(768, 12, qkv_bias=True), 3, 4
    tokens = torch.randn(1, 1 + frames * places, 768)
    changed = tokens.clone()
    changed[0, 1 + 1 * places + 2] += 1  # frame 1, place 2
    for along in ("time", "space"):
        moved = (attention(tokens, frames, along) - attention(changed, frames, along)).abs()
        seen = moved[0].amax(dim=1) > 1e-6
        expected = torch.zeros(frames, places, dtype=bool)
        if along == "time":
            expected[:, 2] = True
        else:
            expected[1] = True
        assert bool(seen[0]), "the class token sees every patch"
        assert torch.equal(seen[1:].view(frames, places), expected), along


def test_sizes_that_differ_are_brought_to_the_source_frame(tmp_path):
    pair = pairs_of("ego4d")[0]
    smaller = tmp_path / "smaller.png"
    image = Image.open(pair.generated)
    image.resize((image.width - 1, image.height)).save(smaller)
    other = Pair(pair.entry, smaller, pair.target, pair.source)
    first, second = egovlp.videos_with_source(other, 4)
    assert first.shape == second.shape == (4, 3, 224, 224)
    assert torch.equal(first[:2], second[:2]) and not torch.equal(first[2:], second[2:])
    assert (first[2] - egovlp.videos_with_source(pair, 4)[0][2]).abs().mean() < 0.02


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("words") / "distilbert-base-uncased")


def test_similarity_of_texts_as_released(vocabulary, tmp_path):
    figures, arrays = golden("text")
    entries = list(figures["cosine"].values())
    tokenizer = word_pieces(vocabulary)
    for entry in entries:
        for name in ("description", "caption"):
            assert tokenizer(entry[name])["input_ids"] == entry[f"{name}_ids"]
    assert tokenizer("")["input_ids"] == figures["empty_caption_ids"]
    # The same words in the files that libraries write today.
    tokenizer.save_pretrained(tmp_path / "today")
    (tmp_path / "today/vocab.txt").unlink(missing_ok=True)
    again = word_pieces(tmp_path / "today")
    assert again(entries[0]["description"])["input_ids"] == entries[0]["description_ids"]
    long = "stir the soup with a spoon and " * 120
    ids = egovlp.cut_ids(tokenizer, long)
    assert len(ids) == 512 and ids[-3:] == figures["long_text"]["last_ids"]
    state = state_dict("egovlp_4f", r"text_model|txt_proj")
    tower = filled(egovlp.TextTower, state, "x")
    for name in ("description", "caption"):
        known = [entry[f"{name}_ids"] for entry in entries]
        for batch_size in (1, 4):
            embedded = egovlp.embeddings(tower, known, batch_size)
            np.testing.assert_allclose(embedded.numpy(), arrays[f"{name}_embed"], atol=1e-4)
    embedded = egovlp.embeddings(tower, [ids], 8)
    np.testing.assert_allclose(embedded.numpy(), arrays["long_embed"].reshape(1, -1), atol=1e-4)
    found = egovlp.similarities(
        tower,
        vocabulary,
        [entry["description"] for entry in entries],
        [entry["caption"] for entry in entries],
        batch_size=4,
    )
    assert found == pytest.approx([entry["cosine"] for entry in entries], abs=1e-4)


def test_a_folder_that_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(EgoGenError, match="bert: no such folder"):
        word_pieces(tmp_path / "bert")
    (tmp_path / "bert").mkdir()
    with pytest.raises(EgoGenError, match="bert"):
        word_pieces(tmp_path / "bert")
    (tmp_path / "bert/vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    with pytest.raises(EgoGenError, match="bert: 6 word pieces, expected 30522"):
        word_pieces(tmp_path / "bert")

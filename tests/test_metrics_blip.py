"""BLIP's captions against the numbers of the released script in evaluation mode.

Full-size networks, weights filled by the recipe that the golden numbers were computed with.
"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from golden_weights import DATA, state_dict
from offline import offline  # noqa: F401 (no hidden downloads)
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel
from word_piece_folder import write_vocabulary

from egogen.errors import EgoGenError
from egogen.frames import read_rgb
from metrics.frame_pairs import find_pairs
from metrics.loading import filled, load_state_dict
from metrics.measures import captions
from metrics.measures.captions import Captioner, TextDecoder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write_vocabulary(tmp_path_factory.mktemp("words") / "bert-base-uncased")
    return captions.caption_pieces(folder)


def inputs_of(count: int) -> torch.Tensor:
    root = DATA / "ego4d"
    truth = root / "EgoGen/ego4d.fho/val_gt_for_metric"
    pairs = find_pairs(root / "run/images", truth, root / "ego4d_val.json").pairs
    assert [pair.key for pair in pairs] == golden("base")[0]["images"]
    return torch.stack([captions.image_input(read_rgb(pair.generated)) for pair in pairs[:count]])


def golden(kind: str):
    return (
        json.loads((DATA / f"blip_{kind}.json").read_text()),
        np.load(DATA / f"blip_{kind}.npz"),
    )


@torch.inference_mode()
def compare(kind: str, network, tokenizer, count: int) -> torch.Tensor:
    """Pixels, encoder, logits, captions of the first pictures; gives the encoder's states."""
    figures, stored = golden(kind)
    arrays = {name: array[:count] for name, array in stored.items() if "input" not in name}
    expected = {name: values[:count] for name, values in figures["beam"].items()}
    inputs = inputs_of(count)
    np.testing.assert_allclose(
        inputs[0, :, ::16, ::16].numpy(), stored["first_input_384_stride16"], atol=1e-6
    )
    states = network.visual_encoder(inputs)
    np.testing.assert_allclose(
        states[:, ::48, ::16].numpy(), arrays["visual_encoder_tok_stride48_ch_stride16"], atol=5e-4
    )
    ids = torch.tensor([figures["teacher_forced_ids"]] * len(inputs))
    logits = network.text_decoder(ids, encoder_hidden_states=states).logits
    np.testing.assert_allclose(
        logits[..., ::61].numpy(), arrays["logits_vocab_stride61"], atol=3e-4
    )
    top = logits.topk(5)
    np.testing.assert_allclose(top.values.numpy(), arrays["logits_top5_values"], atol=3e-4)
    following = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    np.testing.assert_allclose(
        following.numpy(), arrays["log_probability_of_next_teacher_forced_token"], atol=3e-4
    )
    found = network.text_decoder.search(states, figures["prompt_ids_used"])
    assert [pieces for _, pieces in found] == [without_end(row) for row in expected["sequences"]]
    assert [score for score, _ in found] == pytest.approx(expected["sequences_scores"], abs=1e-4)
    assert captions.texts_of(tokenizer, [pieces for _, pieces in found]) == expected["captions"]
    assert captions.prompt_pieces(tokenizer) == figures["prompt_ids_used"]
    return states


def without_end(row: list[int]) -> list[int]:
    return row[: row.index(102)] if 102 in row else row


def test_base_as_released_whatever_the_batch(tokenizer):
    network = filled(partial(Captioner, "base"), state_dict("blip_base"), "model_base.pth")
    assert not any(module.training for module in network.modules())
    states = compare("base", network, tokenizer, 2)
    figures, _ = golden("base")
    prompt, sequences = figures["prompt_ids_used"], figures["beam"]["sequences"]
    (_, pieces), *_ = network.text_decoder.search(states[1:], prompt)
    assert pieces == without_end(sequences[1])


@pytest.mark.slow("metrics of all golden pairs")
@pytest.mark.timeout(7200)  # on a busy machine
@pytest.mark.parametrize("kind,count", [("base", 3), ("large", 1)])
def test_all_golden_pictures_as_released(kind, count, tokenizer):
    network = filled(partial(Captioner, kind), state_dict(f"blip_{kind}"), f"model_{kind}.pth")
    compare(kind, network, tokenizer, count)


def small_decoder(seed: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A random decoder of 12 pieces (the last one ends) and states of four pictures."""
    torch.manual_seed(seed)
    config = BlipTextConfig(
        vocab_size=12,
        hidden_size=16,
        encoder_hidden_size=8,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=1,
        sep_token_id=11,
        pad_token_id=0,
        initializer_range=1.0,
    )
    network = TextDecoder(config).eval()
    network.cls.predictions.bias.data[11] += seed % 3
    return network, 2 * torch.randn(4, 5, 8)


RULES = captions.RULES | {"max_length": 12, "min_length": 4}
PROMPT = [1, 5, 7]


@pytest.mark.parametrize("seed", range(6))
def test_captions_of_a_batch_are_those_of_each_picture_alone(seed):
    network, states = small_decoder(seed)
    together = network.search(states, PROMPT, RULES)
    backwards = network.search(states.flip(0), PROMPT, RULES)[::-1]
    for number, (score, pieces) in enumerate(together):
        (alone, texts), (turned, others) = (
            network.search(states[number : number + 1], PROMPT, RULES)[0],
            backwards[number],
        )
        assert pieces == texts == others
        assert (alone, turned) == pytest.approx((score, score), abs=1e-5)
        assert score == pytest.approx(score_of(network, states[number], pieces), abs=1e-4)
        assert 4 <= len(pieces) <= 12 and 11 not in pieces and pieces[:3] == PROMPT


@torch.inference_mode()
def score_of(network, states, pieces) -> float:
    """Log-probability of a caption and its end, over its length with the prompt; anew, uncached."""
    whole = torch.tensor([[*pieces, 11]])
    logits = network(whole, encoder_hidden_states=states[None]).logits
    each = logits.log_softmax(-1)[0, :-1].gather(1, whole[0, 1:, None])[:, 0]
    generated = each[len(PROMPT) - 1 :]
    if len(pieces) == 12:  # cut at the longest length: nothing says that it ends
        generated = generated[:-1]
    return float(generated.sum()) / len(pieces)


def test_the_rule_of_the_score_decides_captions():
    """The library's own search, by today's rule, finds others."""
    equal = differ = 0
    for seed in range(8):
        network, states = small_decoder(seed)
        found = network.search(states, PROMPT, RULES)
        theirs = plain(network).generate(
            input_ids=torch.tensor([PROMPT] * 4),
            encoder_hidden_states=states,
            attention_mask=torch.ones(4, 3, dtype=torch.long),
            num_beams=3,
            max_length=12,
            min_length=4,
            do_sample=False,
            eos_token_id=11,
            pad_token_id=0,
        )
        rows = [row[: row.index(11)] if 11 in row else row for row in theirs.tolist()]
        equal += sum(pieces == row for (_, pieces), row in zip(found, rows, strict=True))
        differ += sum(pieces != row for (_, pieces), row in zip(found, rows, strict=True))
    assert equal and differ


def plain(network: TextDecoder) -> BlipTextLMHeadModel:
    """The library's network with the same weights."""
    made = BlipTextLMHeadModel(network.config).eval()
    made.load_state_dict(network.state_dict())
    return made


def test_captions_stand_in_the_order_of_the_edit_file():
    root = DATA / "ego4d"
    truth = root / "EgoGen/ego4d.fho/val_gt_for_metric"
    pairs = find_pairs(root / "run/images", truth, root / "ego4d_val.json").pairs
    document = captions.by_entry(pairs[::-1], [pair.entry.key for pair in pairs[::-1]])
    entries = json.loads((root / "ego4d_val.json").read_text())
    assert list(document) == list(entries)
    for clip, actions in entries.items():
        assert document[clip] == {action: f"{clip}/{action}" for action in actions}
        assert list(document[clip]) == list(actions)


def test_a_file_of_the_other_size_is_refused_by_name(tmp_path):
    state = {
        "visual_encoder.cls_token": torch.zeros(1, 1, 768),
        "visual_encoder.blocks.0.attn.qkv.weight": torch.zeros(4, 4),
    }
    torch.save({"model": state}, tmp_path / "model_large_caption.pth")
    found = load_state_dict(tmp_path / "model_large_caption.pth")
    with pytest.raises(EgoGenError, match="model_large_caption.pth: .*missing: "):
        filled(partial(Captioner, "large"), found, tmp_path / "model_large_caption.pth")

"""BLIP-B and BLIP-L: a caption of the generated frame, compared with the entry's description.

The captioner is always in evaluation mode. The released script leaves dropout on, so that its
captions depend on the order, the batch size and what ran before, and cannot be reproduced.

Its beam search scores captions as the released script's library did. Today's transformers divide a
caption's log-probability by the number of generated word pieces, the end included; 4.19 divided by
the number of all of them, the prompt included and the end not. The new rule prefers longer
captions, so other captions win.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchvision.transforms.functional import normalize
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from egogen.frames import read_rgb
from metrics.frame_pairs import Pair
from metrics.images import CLIP_MEAN, CLIP_STD, batches, read_ahead, to_tensor
from metrics.loading import filled, load_state_dict
from metrics.measures.egovlp import similarities, text_tower, word_pieces
from metrics.registry import METRICS, Measured, Settings, finite_mean

SIDE = 384  # pixels
PROMPT = "a picture of"
# Of the released script, in word pieces with the prompt.
RULES = {"num_beams": 3, "max_length": 20, "min_length": 5, "do_sample": False}
BEGIN, SECOND = "[DEC]", "[ENC]"  # pieces that BLIP adds to BERT's, in this order
# Of the image tower: what timm's is not by itself, which is the base.
SIZES: dict[str, dict] = {"base": {}, "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16}}
PARTS = ("visual_encoder.", "text_decoder.")  # of a released file
_Decoder: Any = BlipTextLMHeadModel  # whose types do not foresee a search of one's own


class TextDecoder(_Decoder):
    """Transformers' own, and its own search but for the score."""

    @torch.inference_mode()
    def search(
        self, states: Tensor, prompt: list[int], rules: Mapping[str, Any] = RULES
    ) -> list[tuple[float, list[int]]]:
        """(score, pieces with the prompt, without the end) of the best caption of each image.

        `states` (n, tokens, width) is what the decoder attends to. The images of a batch do not
        influence each other.
        """
        pieces = torch.tensor([prompt] * len(states), device=states.device)
        end = self.config.sep_token_id
        # Beams share what is made of their image and the prompt: it is made once.
        read = self(pieces[:, :-1], encoder_hidden_states=states, use_cache=True).past_key_values
        read.batch_repeat_interleave(rules["num_beams"])
        known = {"attention_mask": torch.ones_like(pieces), "encoder_hidden_states": states}
        wanted = {"output_scores": True, "return_dict_in_generate": True}
        ends = {"eos_token_id": end, "pad_token_id": end}
        found = self.generate(pieces, past_key_values=read, **known, **rules, **wanted, **ends)
        rows = [[piece for piece in row if piece != end] for row in found.sequences.tolist()]
        return list(zip(found.sequences_scores.tolist(), rows, strict=True))

    def _update_finished_beams(self, **now: Any) -> tuple[Tensor, ...]:
        """Divides by the old lengths; what is cut at the longest one competes with what ended."""
        sums, length, hits = "topk_log_probs", now["cur_len"], "next_token_hits_stopping_criteria"
        ends = (
            now["topk_running_sequences"][..., length] == self.config.sep_token_id
        )  # (n, 2 beams)
        self.best = now[sums][:, :1] / length
        now[sums] = now[sums] / torch.where(ends, length, length + 1)
        now[hits] = now[hits] & (now["top_num_beam_mask"] | ~ends)
        now["top_num_beam_mask"] = torch.ones_like(now["top_num_beam_mask"])
        return super()._update_finished_beams(**now | {"length_penalty": 0.0})

    def _check_early_stop_heuristic(self, **now: Any) -> Tensor:
        """Goes on while the best of all, ended or not, would be among those that ended."""
        return super()._check_early_stop_heuristic(
            **now | {"running_beam_scores": self.best, "length_penalty": 0.0}
        )

    def _reorder_cache(self, cache: Any, beams: Tensor) -> Any:
        """Beams change places within their image, whose keys and values are equal."""
        cache.self_attention_cache.reorder_cache(beams)
        return cache


class Captioner(torch.nn.Module):
    """BLIP of `kind`, base or large; its parameters have the names of a released file.

    The image tower takes (n, 3, 384, 384) and gives states (n, 577, width).
    """

    def __init__(self, kind: str):
        super().__init__()
        tower = VisionTransformer(
            SIDE, num_classes=0, global_pool="", weight_init="skip", **SIZES[kind]
        )
        config = BlipTextConfig(num_attention_heads=12, encoder_hidden_size=tower.embed_dim)
        self.visual_encoder, self.text_decoder = tower, TextDecoder(config)


def image_input(image: Image.Image) -> Tensor:
    """RGB image -> (3, 384, 384) float32: Pillow's bicubic, aspect not kept, CLIP's mean, std."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return normalize(to_tensor(small), CLIP_MEAN, CLIP_STD)


def caption_pieces(folder: Path):
    """BERT's word pieces with the two that BLIP adds; ids 30522 and 30523."""
    tokenizer = word_pieces(folder)
    tokenizer.add_special_tokens({"bos_token": BEGIN})
    tokenizer.add_tokens([SECOND], special_tokens=True)
    return tokenizer


def prompt_pieces(tokenizer) -> list[int]:
    """Ids of the prompt: BLIP's own first piece in place of BERT's, no last one."""
    return [tokenizer.bos_token_id, *tokenizer(PROMPT)["input_ids"][1:-1]]


def texts_of(tokenizer, found: Sequence[list[int]]) -> list[str]:
    """Captions without the prompt, from pieces with it; a caption begins with a blank."""
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": True}
    return [text[len(PROMPT) :] for text in tokenizer.batch_decode(found, **plain)]


@torch.inference_mode()
def captions(network: Captioner, tokenizer, inputs: Tensor) -> list[str]:
    """Inputs (n, 3, 384, 384) -> a caption each."""
    states = network.visual_encoder(inputs)
    found = network.text_decoder.search(states, prompt_pieces(tokenizer))
    return texts_of(tokenizer, [pieces for _, pieces in found])


def by_entry(pairs: Sequence[Pair], texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """clip -> action -> text, in the order of the edit file."""
    found: dict[str, dict[str, str]] = {}
    for pair, text in sorted(zip(pairs, texts, strict=True), key=lambda both: both[0].place):
        found.setdefault(pair.entry.clip, {})[pair.entry.action_id] = text
    return found


def _measure(kind: str, pairs: Sequence[Pair], settings: Settings) -> Measured:
    metric = METRICS[f"blip_{kind}"]
    blip, egovlp, distilbert, bert = metric.weight_files(settings)
    state = load_state_dict(blip, PARTS)
    network = filled(partial(Captioner, kind), state, blip).to(settings.device)
    tokenizer = caption_pieces(bert)
    inputs = [pair.generated for pair in pairs]
    read = read_ahead(lambda path: image_input(read_rgb(path)), inputs, settings, metric.name)
    texts: list[str] = []
    for batch in batches(read, settings.batch_size):
        texts += captions(network, tokenizer, torch.stack(batch).to(settings.device))
    del network, state
    descriptions = [pair.entry.texts[settings.llava_key] for pair in pairs]
    tower = text_tower(egovlp, settings.device)
    values = similarities(tower, distilbert, descriptions, texts, settings.batch_size)
    key = f"blip_{kind}_egovlp_sim"
    documents = {metric.documents[0]: by_entry(pairs, texts)}
    return Measured({key: finite_mean(values)}, {key: values}, documents=documents)


measure_base = partial(_measure, "base")
measure_large = partial(_measure, "large")

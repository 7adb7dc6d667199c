"""BLIP-B and BLIP-L: a caption of the generated frame, compared with the entry's description.

The captioner is always in evaluation mode. The released script leaves dropout on, so that its
captions depend on the order, the batch size and what ran before, and cannot be reproduced.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

from egogen.frames import read_rgb
from metrics.frame_pairs import Pair
from metrics.images import CLIP_MEAN, CLIP_STD, batches, read_ahead, to_tensor
from metrics.networks.beam_search import SearchRules, beam_search
from metrics.networks.blip_attention import image_states
from metrics.networks.loading import library_network, load_state_dict
from metrics.networks.text_similarity import similarities, text_tower, word_pieces
from metrics.registry import METRICS, Measured, Settings, finite_mean

SIDE = 384  # pixels
PROMPT = "a picture of"
BEGIN, SECOND = "[DEC]", "[ENC]"  # pieces that BLIP adds to BERT's, in this order
RULES = SearchRules(beams=3, longest=20, shortest=5)
# Of the vision tower; what is not named is as in BLIP's own configuration, the base.
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
SIZES: dict[str, dict] = {"base": {}, "large": {**LARGE, "num_attention_heads": 16}}
PARTS = ("visual_encoder.", "text_decoder.")
# What the released files call the library's names, from left to right.
NAMES = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"^(vision_model\.encoder\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^(vision_model\.encoder\..*)\.attn\.", r"\1.self_attn."),
    (r"^(vision_model\.encoder\..*)\.norm([12])\.", r"\1.layer_norm\2."),
)


def library_name(name: str) -> str:
    """Name of a parameter in a released BLIP file -> in transformers."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def blip_config(kind: str) -> BlipConfig:
    """The released network of `kind`: base or large."""
    text = BlipTextConfig(num_attention_heads=12)
    vision = BlipVisionConfig(image_size=SIDE, layer_norm_eps=1e-6, **SIZES[kind])
    return BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


def captioner(
    kind: str, state: Mapping[str, torch.Tensor], path: str | os.PathLike
) -> BlipForConditionalGeneration:
    """The captioner of `kind` (base, large) from the tensors of the released file `path`."""
    renamed = {library_name(name): tensor for name, tensor in state.items()}
    return library_network(BlipForConditionalGeneration, blip_config(kind), renamed, path)


def image_input(image: Image.Image) -> torch.Tensor:
    """RGB image -> (3, 384, 384) float32: Pillow's bicubic, aspect not kept, CLIP's mean, std."""
    pixels = to_tensor(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


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
    decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    return [decode(pieces)[len(PROMPT) :] for pieces in found]


@torch.inference_mode()
def captions(network: BlipForConditionalGeneration, tokenizer, inputs: torch.Tensor) -> list[str]:
    """Inputs (n, 3, 384, 384) -> a caption each."""
    states = image_states(network.vision_model, inputs)
    found = beam_search(network.text_decoder, states, prompt_pieces(tokenizer), RULES)
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
    network = captioner(kind, load_state_dict(blip, PARTS), blip).to(settings.device)
    tokenizer = caption_pieces(bert)
    inputs = [pair.generated for pair in pairs]
    read = read_ahead(lambda path: image_input(read_rgb(path)), inputs, settings, metric.name)
    texts: list[str] = []
    for batch in batches(read, settings.batch_size):
        texts += captions(network, tokenizer, torch.stack(batch).to(settings.device))
    del network
    descriptions = [pair.entry.texts[settings.llava_key] for pair in pairs]
    tower = text_tower(egovlp, settings.device)
    values = similarities(tower, distilbert, descriptions, texts, settings.batch_size)
    key = f"blip_{kind}_egovlp_sim"
    documents = {metric.documents[0]: by_entry(pairs, texts)}
    return Measured({key: finite_mean(values)}, {key: values}, documents=documents)


measure_base = partial(_measure, "base")
measure_large = partial(_measure, "large")

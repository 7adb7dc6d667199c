"""The golden conversations as samples and batches of tuning, with their images by recipe."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from PIL import Image
from recipe import image
from vllm_tiny import DATA

from llava.conversation import TEMPLATES
from llava.tokenizer import SentencePieceTokenizer
from llava.tokens import encode_conversation, expand_sample
from llava.train.data import TuningData, read_conversations

# The released code masks a whole sample whose text holds "[/INST] " or "</s>"; here the mark is
# taken apart, so these two cannot be equal.
MARKED = ("ego_0007", "ego_0009")


def conversations(name: str = "conversations.json"):
    return read_conversations(DATA / name)


def encoded(legacy: bool = True):
    """(id, sample) of conversations.json as the tuning data has them, before any cut."""
    tokenizer = SentencePieceTokenizer(DATA, legacy)
    for item in conversations():
        pictured = item.image is not None
        yield (
            item.name,
            encode_conversation(item.turns, TEMPLATES["llama_2"], tokenizer, pictured),
        )


def tuning_batch(processor, which) -> dict[str, torch.Tensor]:
    """Samples `which` in one padded batch, 256 positions for an image."""
    items, samples = conversations(), [sample for _, sample in encoded()]
    rows = []
    for k in which:
        pixels = torch.zeros(3, 224, 224)
        if items[k].image:
            name = items[k].image.split("/")[0]
            pixels = processor(Image.fromarray(image(name, 256, 455)))
        rows.append({"encoded": expand_sample(samples[k], 256), "pixel_values": pixels})
    return TuningData.collate(SimpleNamespace(pad_id=0), rows)

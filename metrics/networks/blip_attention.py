"""BLIP's attention in fused form; the library computes it step by step, once for every beam.

The numbers are the same up to rounding. Shapes: n images, t tokens of an image, w width, h heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import BlipVisionModel
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextSelfAttention


def image_states(tower: BlipVisionModel, inputs: torch.Tensor) -> torch.Tensor:
    """(n, 3, side, side) -> (n, t, w): what `tower` gives in evaluation mode."""
    states = tower.embeddings(inputs)  # (n, t, w)
    for layer in tower.encoder.layers:
        states = states + self_attention(layer.self_attn, layer.layer_norm1(states))
        states = states + layer.mlp(layer.layer_norm2(states))
    return tower.post_layernorm(states)


def self_attention(layer: BlipAttention, states: torch.Tensor) -> torch.Tensor:
    """(n, t, w) -> the same shape."""
    split = layer.qkv(states).unflatten(-1, (3, layer.num_heads, -1))  # (n, t, 3, h, w/h)
    mixed = scaled_dot_product_attention(*split.permute(2, 0, 3, 1, 4))  # (n, h, t, w/h)
    return layer.projection(mixed.transpose(1, 2).flatten(2))  # (n, t, w)


class ImageAttention(nn.Module):
    """Cross-attention of a text layer to images whose keys and values are computed once.

    All beams of an image read one copy of them. Rows of a call: all beams of the first image,
    then all of the second; any number of beams.
    """

    def __init__(self, own: BlipTextSelfAttention, states: torch.Tensor):
        super().__init__()
        self.query, self.heads = own.query, own.num_attention_heads
        self.keys, self.values = (self.split(part(states)) for part in (own.key, own.value))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(n, t, w) -> (n, h, t, w/h)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        """(rows, new, w) -> (the same shape, None), as the library's layer gives it."""
        query = self.query(hidden_states)  # (n * beams, new, w)
        together = query.reshape(len(self.keys), -1, query.shape[-1])  # (n, beams * new, w)
        mixed = scaled_dot_product_attention(self.split(together), self.keys, self.values)
        return mixed.transpose(1, 2).reshape(query.shape), None


@contextmanager
def held_images(decoder: BlipTextLMHeadModel, states: torch.Tensor) -> Iterator[None]:
    """Inside, the beams of image i given to `decoder` attend to states[i], (n, t, w).

    Call the decoder with `encoder_hidden_states` all the same: it cross-attends only when they are
    given, and looks at nothing but their shape.
    """
    layers = [layer.crossattention for layer in decoder.bert.encoder.layer]
    before = [layer.self for layer in layers]
    try:
        for layer, own in zip(layers, before, strict=True):
            layer.self = ImageAttention(own, states)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.self = own

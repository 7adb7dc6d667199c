"""BLIP's image tower with fused attention; the library computes that step by step.

The numbers are the same up to rounding. Shapes: n images, t tokens of an image, w width, h heads.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BlipVisionModel
from transformers.models.blip.modeling_blip import BlipAttention


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

"""What the UNet is told: description, VLLM image features and VLLM text features in one context.

Letters: B batch, P prompt rows (77), I image feature rows (256), T text feature rows (77),
D feature width of the VLLM (5120), C context width (768).
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from egogen import EgoGenError


class FeatureConditioner(ModelMixin, ConfigMixin):
    """Projections of both kinds of VLLM features and self-attention over the text rows.

    LEGO (ECCV 2024), section 3.3: image features through a linear layer; text features through a
    linear layer and two pre-norm self-attention layers. `variant` leaves out parts that a run does
    not use, so that no parameter is without a gradient. `image_rows` and `text_rows` are what it
    is given; they size the unconditional context.
    """

    @register_to_config
    def __init__(
        self,
        feature_dim: int = 5120,
        context_dim: int = 768,
        variant: str = "both",
        image_rows: int = 256,
        text_rows: int = 77,
        num_heads: int = 8,
        num_layers: int = 2,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        mask_text_padding: bool = False,
    ):
        super().__init__()
        self.uses_image = variant in ("image", "both")
        self.uses_text = variant in ("text", "both")
        self.mask_text_padding = mask_text_padding
        if self.uses_image:
            self.projection_img = nn.Linear(feature_dim, context_dim)
        if self.uses_text:
            self.projection_txt = nn.Linear(feature_dim, context_dim)
            layer = nn.TransformerEncoderLayer(
                context_dim, num_heads, feedforward_dim, dropout, batch_first=True, norm_first=True
            )
            self.self_attn_mix = nn.TransformerEncoder(
                layer, num_layers, enable_nested_tensor=False
            )

    def forward(
        self, image_features: Tensor | None, text_features: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(B, I, D), zero-padded (B, T, D) -> (B, I, C) or None, (B, T, C) or None."""
        image_rows = text_rows = None
        if self.uses_image:
            image_rows = self.projection_img(image_features)
        if self.uses_text:
            padding = None
            if self.mask_text_padding:
                padding = (text_features == 0).all(dim=-1)  # (B, T), true where padded
            text_rows = self.projection_txt(text_features)
            text_rows = self.self_attn_mix(text_rows, src_key_padding_mask=padding)
            if padding is not None:
                text_rows = text_rows.masked_fill(padding[..., None], 0.0)
        return image_rows, text_rows


def pad_text_rows(rows: Tensor, count: int) -> Tensor:
    """(n, D) -> (count, D): cut, or padded with zero rows before the projection, as released."""
    if rows.ndim != 2:
        raise EgoGenError(f"text features of shape {tuple(rows.shape)}: expected (n, d)")
    return nn.functional.pad(rows[:count], (0, 0, 0, max(0, count - rows.shape[0])))


def join_context(prompt: Tensor, image_rows: Tensor | None, text_rows: Tensor | None) -> Tensor:
    """(B, P, C), (B, I, C), (B, T, C) -> (B, P + I + T, C), in the released order."""
    return torch.cat([part for part in (prompt, image_rows, text_rows) if part is not None], dim=1)


def dropout_masks(draws: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Classifier-free dropout: uniform draws (B,) in [0, 1) -> bool (B,) prompt and image dropped.

    The released table for u = `share`: [0, u) prompt only, [u, 2u) both, [2u, 3u) image only.
    """
    prompt_dropped = draws < 2 * share
    image_dropped = (draws >= share) & (draws < 3 * share)
    return prompt_dropped, image_dropped

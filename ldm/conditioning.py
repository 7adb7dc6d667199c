"""What the denoiser attends to: the description and the features of stage 1, in one context.

Features go by name (`{"image": ..., "text": ...}`); which there are, and how each is encoded, is
the table `conditioner.features` of the config (`ldm.schema.FeatureParams`).

Letters: B batch, P prompt rows (77), n rows of one feature (256 image, 77 text), L context rows (P
and the rows of all features), D feature width of the VLLM (5120), C context width (768).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from egogen import EgoGenError
from ldm.schema import FeatureParams

INIT_GAIN = {"linear": 0.1, "self_attention": 2.0}  # times torch's initial weights, by encoder


class FeatureEncoder(nn.Module):
    """A linear layer and, where the table says so, pre-norm self-attention over the rows."""

    def __init__(self, spec: FeatureParams, context_dim: int, layers: int, **layer: Any):
        super().__init__()
        self.projection = nn.Linear(spec.width, context_dim)
        self.attention: nn.TransformerEncoder | None = None
        if spec.encoder == "self_attention":
            options = {"batch_first": True, "norm_first": True, **layer}
            one = nn.TransformerEncoderLayer(context_dim, **options)
            self.attention = nn.TransformerEncoder(one, layers, enable_nested_tensor=False)

    @torch.no_grad()
    def scale_init(self, gain: float) -> None:
        """Scale weights in place so that rows become `gain` times as large.

        For training from random weights beside a pretrained denoiser, with INIT_GAIN. Image rows
        (linear) show what the denoiser sees anyway, and there are hundreds: near the zeros that
        stand for no features they leave its attention to the prompt. Text rows (self-attention) are
        read sooner about as loud as the prompt's. Measured on the mini world (docs/mini.md).
        """
        written = [self.projection]  # what adds to the rows
        for layer in self.attention.layers if self.attention else ():
            written += [layer.self_attn.out_proj, layer.linear2]
        for part in written:
            part.weight.mul_(gain)
            part.bias.mul_(gain)

    def forward(self, rows: Tensor, padding: Tensor | None = None) -> Tensor:
        """rows (B, n, D), padding (B, n) bool, true where padded -> (B, n, C)."""
        x = self.projection(rows)  # (B, n, C)
        if self.attention is not None:
            x = self.attention(x, src_key_padding_mask=padding)  # (B, n, C)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)  # (B, n, C)
        return x


class FeatureConditioner(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """One encoder for each feature that a run uses, in the order of the table.

    LEGO (ECCV 2024), section 3.3: image features through a linear layer; text features through a
    linear layer and two self-attention layers. `features` is the table as a list, so that files
    keep its order: `[{"name": "image", "width": 5120, "rows": 256, "encoder": "linear", "padded":
    False}, ...]`; the other arguments are of the self-attention.
    """

    _skip_layerwise_casting_patterns = ("attention",)  # whose weights PyTorch reads past the hooks

    @register_to_config
    def __init__(
        self,
        features: list[dict[str, Any]],
        context_dim: int = 768,
        num_heads: int = 8,
        num_layers: int = 2,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        mask_text_padding: bool = False,
    ):
        super().__init__()
        table = [dict(row) for row in features]  # {name: row}, as the config has it
        self.features = {row.pop("name"): FeatureParams(**row) for row in table}
        self.mask_padding = mask_text_padding
        self.encoders = nn.ModuleDict()
        layer = {"nhead": num_heads, "dim_feedforward": feedforward_dim, "dropout": dropout}
        for name, spec in self.features.items():
            self.encoders[name] = FeatureEncoder(spec, context_dim, num_layers, **layer)

    @property
    def rows(self) -> int:
        """How many context rows all features have together."""
        return sum(spec.rows for spec in self.features.values())

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (B, n, D)} -> {name: (B, n, C)}, in the table's order; others are ignored."""
        encoded = {}
        for name, encoder in self.encoders.items():
            rows, padding = features[name], None  # (B, n, D)
            if self.mask_padding and self.features[name].padded:
                padding = (rows == 0).all(dim=-1)  # (B, n)
            encoded[name] = encoder(rows, padding)  # (B, n, C)
        return encoded

    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        """Never quantised: PyTorch's self-attention reads its layers' weights as they are."""
        return super().from_pretrained(*args, **kwargs)

    def enable_group_offload(self, onload_device: Any, *args: Any, **kwargs: Any) -> None:
        """Kept on the device as a whole, for the same reason."""
        self.to(onload_device)


def features_as_list(table: Mapping[str, FeatureParams]) -> list[dict[str, Any]]:
    """The table as plain values, as `FeatureConditioner` takes and files hold it."""
    return [{"name": name, **asdict(spec)} for name, spec in table.items()]


def pad_rows(rows: Tensor, count: int) -> Tensor:
    """(n, D) -> (count, D): cut, or padded by zero rows before the projection, as released."""
    if rows.ndim != 2:
        raise EgoGenError(f"features of shape {tuple(rows.shape)}: expected (n, d)")
    return nn.functional.pad(rows[:count], (0, 0, 0, max(0, count - rows.shape[0])))


def join_context(prompt: Tensor, rows: Iterable[Tensor]) -> Tensor:
    """(B, P, C) and the features' (B, n, C) -> (B, L, C), in the released order: prompt, table."""
    return torch.cat([prompt, *rows], dim=1)


def dropout_masks(draws: Tensor, cond_drop_prob: float) -> tuple[Tensor, Tensor]:
    """Classifier-free dropout: uniform draws (B,) in [0, 1) -> bool (B,) prompt and image dropped.

    The table of the released code for u = `cond_drop_prob`: [0, u) the prompt (and the features)
    alone, [u, 2u) both, [2u, 3u) the image alone.
    """
    prompt_dropped = draws < 2 * cond_drop_prob
    image_dropped = (draws >= cond_drop_prob) & (draws < 3 * cond_drop_prob)
    return prompt_dropped, image_dropped

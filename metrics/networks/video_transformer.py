"""The space-time transformer of EgoVLP (Lin et al. 2022; Frozen in Time, Bain et al. 2021).

A ViT-B/16 over all patches of a few frames. Each block attends along time, then within each frame.
No library holds this network; timm's ViT has the names that the released weight files have.

Shapes: n videos, f frames, p = 196 patches of a frame, t = 1 + f p tokens (the class token first,
then the patches frame by frame), w = 768 width, h = 12 heads, d = w/h.
"""

from typing import Any

import torch
from timm.models import vision_transformer
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

SIDE = 224  # pixels
EMBEDDING = 256  # numbers of the joint space of videos and texts
PARTS = ("video_model.", "vid_proj.", "text_model.", "txt_proj.")  # of a released file


class GroupedAttention(vision_transformer.Attention):
    """Self-attention of patches within groups; the class token sees all, and all see it.

    Groups are the frames ("space": a patch sees the patches of its own frame) or the places
    ("time": a patch sees its own place in all frames).
    """

    def forward(self, tokens: torch.Tensor, frames: int, along: str) -> torch.Tensor:
        """(n, t, w) -> the same; `along` is "time" or "space"."""
        split = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # (n, t, 3, h, d)
        rows = split.permute(2, 0, 3, 1, 4).flatten(1, 2)  # (3, n h, t, d): queries, keys, values
        first, patches = rows[:, :, None, :1], rows[:, :, 1:].unflatten(2, (frames, -1))
        if along == "time":
            patches = patches.transpose(2, 3)  # groups are frames (3, n h, f, p, d), or places
        of_class = scaled_dot_product_attention(first[0], *rows[1:, :, None])  # (n h, 1, 1, d)
        each = first[1:].expand(-1, -1, patches.shape[2], -1, -1)
        seen = torch.cat([each, patches[1:]], dim=3)  # keys and values of a group and the class
        found = scaled_dot_product_attention(patches[0], *seen)
        if along == "time":
            found = found.transpose(1, 2)  # (n h, f, p, d)
        joined = torch.cat([of_class[:, 0], found.flatten(1, 2)], dim=1)  # (n h, t, d)
        joined = joined.unflatten(0, (-1, self.num_heads)).transpose(1, 2)  # (n, t, h, d)
        return self.proj(joined.flatten(2))  # (n, t, w)


class Block(vision_transformer.Block):
    """Attention along time, attention in space of its sum, added to the block's input, then MLP."""

    def __init__(self, dim: int, num_heads: int, **options: Any):
        super().__init__(dim, num_heads, **options)
        self.norm3 = options["norm_layer"](dim)
        self.attn, self.timeattn = (GroupedAttention(dim, num_heads, qkv_bias=True) for _ in "st")

    def forward(self, tokens: torch.Tensor, frames: int) -> torch.Tensor:
        over_time = tokens + self.timeattn(self.norm3(tokens), frames, "time")
        # To the input, not to `over_time`: so the network was trained.
        tokens = tokens + self.attn(self.norm1(over_time), frames, "space")
        return tokens + self.mlp(self.norm2(tokens))


class VideoModel(vision_transformer.VisionTransformer):
    """Tokens of a video -> the class token after the last norm; `video_model.*` of a file."""

    def __init__(self, frames: int):
        super().__init__(SIDE, num_classes=0, weight_init="skip", block_fn=Block)
        self.temporal_embed = nn.Parameter(torch.empty(1, frames, self.embed_dim))

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        """(n, f, 3, 224, 224) float32, normalised -> (n, w)."""
        frames = videos.shape[1]
        patches = self.patch_embed(videos.flatten(0, 1)).unflatten(0, (-1, frames))  # (n, f, p, w)
        patches = patches + self.pos_embed[:, None, 1:]
        patches = (patches + self.temporal_embed[:, :, None]).flatten(1, 2)  # (n, f p, w)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(videos), -1, -1)  # (n, 1, w)
        tokens = torch.cat([first, patches], dim=1)  # (n, t, w)
        for block in self.blocks:
            tokens = block(tokens, frames)
        return self.norm(tokens[:, 0])


class VideoTransformer(nn.Module):
    """`video_model.*` and `vid_proj.*` of an EgoVLP file, for videos of exactly `frames` frames."""

    def __init__(self, frames: int):
        super().__init__()
        self.video_model = VideoModel(frames)
        self.vid_proj = nn.Sequential(nn.Linear(self.video_model.embed_dim, EMBEDDING))

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        """(n, f, 3, 224, 224) float32, normalised -> (n, 256) in the joint space."""
        return self.vid_proj(self.video_model(videos))

"""The space-time transformer of EgoVLP (Lin et al. 2022; Frozen in Time, Bain et al. 2021).

A ViT-B/16 over all patches of a few frames. Each block attends along time, then within each frame.
No library holds this network; the names of its parameters are those of the released weight files.

Shapes: n videos, f frames, p = 196 patches of a frame, t = 1 + f p tokens (the class token first,
then the patches frame by frame), w = 768 width, h = 12 heads, d = w/h.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

SIDE, PATCH = 224, 16  # pixels
WIDTH, DEPTH, HEADS = 768, 12, 12
EMBEDDING = 256  # numbers of the joint space of videos and texts
EPSILON = 1e-6  # of the layer norms
PARTS = ("video_model.", "vid_proj.", "text_model.", "txt_proj.")  # of a released file


class GroupedAttention(nn.Module):
    """Self-attention of patches within groups; the class token sees all, and all see it.

    Groups are the frames ("space": a patch sees the patches of its own frame) or the places
    ("time": a patch sees its own place in all frames).
    """

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: torch.Tensor, frames: int, along: str) -> torch.Tensor:
        """(n, t, w) -> the same; `along` is "time" or "space"."""
        split = self.qkv(tokens).unflatten(2, (3, HEADS, -1))  # (n, t, 3, h, d)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).flatten(1, 2)  # each (n h, t, d)
        rows = (queries[:, None, :1], keys[:, None], values[:, None])
        of_class = scaled_dot_product_attention(*rows)  # (n h, 1, 1, d)

        def grouped(rows: torch.Tensor) -> torch.Tensor:
            patches = rows[:, 1:].unflatten(1, (frames, -1))  # (n h, f, p, d): groups are frames
            return patches.transpose(1, 2) if along == "time" else patches  # or (n h, p, f, d)

        def with_class(rows: torch.Tensor) -> torch.Tensor:
            members = grouped(rows)
            first = rows[:, None, :1].expand(-1, members.shape[1], -1, -1)
            return torch.cat([first, members], dim=2)

        found = scaled_dot_product_attention(grouped(queries), with_class(keys), with_class(values))
        if along == "time":
            found = found.transpose(1, 2)  # (n h, f, p, d)
        joined = torch.cat([of_class[:, 0], found.flatten(1, 2)], dim=1)  # (n h, t, d)
        return self.proj(joined.unflatten(0, (-1, HEADS)).transpose(1, 2).flatten(2))  # (n, t, w)


class Block(nn.Module):
    """Attention along time, attention in space of its sum, added to the block's input, then MLP."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH, EPSILON) for _ in range(3))
        self.attn, self.timeattn = GroupedAttention(), GroupedAttention()
        inner, outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.mlp = nn.Sequential(OrderedDict(fc1=inner, act=nn.GELU(), fc2=outer))

    def forward(self, tokens: torch.Tensor, frames: int) -> torch.Tensor:
        over_time = tokens + self.timeattn(self.norm3(tokens), frames, "time")
        # To the input, not to `over_time`: so the network was trained.
        tokens = tokens + self.attn(self.norm1(over_time), frames, "space")
        return tokens + self.mlp(self.norm2(tokens))


class VideoModel(nn.Module):
    """Tokens of a video -> the class token after the last norm; `video_model.*` of a file."""

    def __init__(self, frames: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (SIDE // PATCH) ** 2, WIDTH))
        self.temporal_embed = nn.Parameter(torch.empty(1, frames, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        """(n, f, 3, 224, 224) float32, normalised -> (n, w)."""
        frames = videos.shape[1]
        patches = self.patch_embed["proj"](videos.flatten(0, 1))  # (n f, w, 14, 14)
        patches = patches.flatten(2).transpose(1, 2).unflatten(0, (-1, frames))  # (n, f, p, w)
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
        self.vid_proj = nn.Sequential(nn.Linear(WIDTH, EMBEDDING))

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        """(n, f, 3, 224, 224) float32, normalised -> (n, 256) in the joint space."""
        return self.vid_proj(self.video_model(videos))

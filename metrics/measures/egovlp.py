"""EgoVLP and EgoVLP+: similarity of a generated frame and its ground truth as videos.

A still image becomes a video by repetition (EgoVLP), or follows the source frame, half of the
video each (EgoVLP+; so both videos of a pair share half of their frames). Captions are compared in
the same space: videos and texts have a tower and a projection each (Lin et al. 2022).

Videos: the space-time transformer of Bain et al. 2021, a ViT-B/16 over all patches of a few frames.
Each block attends along time, then within each frame. No library holds it; timm's ViT has the names
that the released weight files have. Texts: DistilBERT, its first token.

Shapes: n videos or texts, l word pieces of each text, f frames, p = 196 patches of a frame,
t = 1 + f p tokens (the class token first, then the patches frame by frame), w = 768 width,
h = 12 heads, d = w/h.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from timm.models import vision_transformer
from torch import nn
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention
from torchvision.transforms.functional import center_crop, normalize, resize
from transformers import BertTokenizer, DistilBertConfig, DistilBertModel

from egogen.errors import EgoGenError
from metrics.frame_pairs import Pair
from metrics.images import (
    batches,
    equal_groups,
    read_ahead,
    read_source,
    read_unresized,
    resized,
    to_tensor,
)
from metrics.loading import filled, load_state_dict
from metrics.registry import METRICS, Measured, Settings, finite_mean

FRAMES = {"ego4d": 4, "epickitchen": 16}  # of a video, in the released weights of each dataset
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]
SIDE = 224  # pixels
EMBEDDING = 256  # numbers of the joint space of videos and texts
PARTS = ("video_model.", "vid_proj.", "text_model.", "txt_proj.")  # of a released file
VOCABULARY = 30522  # word pieces; another one would not have the ids of the weights
LONGEST = 512  # word pieces of a text, the first and the last included
VIT: Any = vision_transformer  # whose parts take other arguments here


class GroupedAttention(VIT.Attention):
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


class Block(VIT.Block):
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


class VideoModel(VIT.VisionTransformer):
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


class TextTower(nn.Module):
    """`text_model.*` and `txt_proj.*` of an EgoVLP file."""

    def __init__(self):
        super().__init__()
        self.text_model = DistilBertModel(DistilBertConfig())
        width = self.text_model.config.dim
        self.txt_proj = nn.Sequential(nn.ReLU(), nn.Linear(width, EMBEDDING))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Word pieces (n, l) int64 without padding -> (n, 256)."""
        states = self.text_model(input_ids=ids).last_hidden_state  # (n, l, 768)
        return self.txt_proj(states[:, 0])


@lru_cache(maxsize=1)
def text_tower(path: Path, device: str) -> TextTower:
    """The text side of an EgoVLP file; kept, since both captioners use it."""
    return filled(TextTower, load_state_dict(path, PARTS), path).to(device)


@torch.inference_mode()
def embeddings(tower: TextTower, ids: Sequence[Sequence[int]], batch_size: int) -> torch.Tensor:
    """Word pieces of n texts -> (n, 256), on the CPU.

    Texts of equal length go together, so that none is padded: the released script has one a batch.
    """
    device = next(tower.parameters()).device
    found = torch.empty(len(ids), EMBEDDING)
    for numbers in equal_groups(list(map(len, ids)), batch_size):
        found[numbers] = tower(torch.tensor([ids[n] for n in numbers], device=device)).cpu()
    return found


def word_pieces(folder: Path) -> BertTokenizer:
    """BERT's uncased tokenizer from a folder with vocab.txt or tokenizer.json, never from a hub."""
    if not folder.is_dir():
        raise EgoGenError(f"{folder}: no such folder, expected vocab.txt of a BERT tokenizer")
    try:
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EgoGenError(f"{folder}: no readable BERT tokenizer ({error})") from None
    if (count := len(tokenizer)) != VOCABULARY:
        raise EgoGenError(f"{folder}: {count} word pieces, expected {VOCABULARY} (uncased)")
    return tokenizer


def cut_ids(tokenizer: BertTokenizer, text: str) -> list[int]:
    """Word pieces of a text, cut so that 512 are left with the first and the last."""
    return tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"]


def similarities(
    tower: TextTower, vocabulary: Path, first: Sequence[str], second: Sequence[str], batch_size: int
) -> list[float]:
    """Cosine of `first[i]` and `second[i]`, -1 to 1. `vocabulary`: folder of a BERT tokenizer."""
    tokenizer = word_pieces(vocabulary)
    texts = list(dict.fromkeys([*first, *second]))
    ids = [cut_ids(tokenizer, text) for text in texts]
    rows = dict(zip(texts, embeddings(tower, ids, batch_size), strict=True))
    left, right = (torch.stack([rows[text] for text in side]) for side in (first, second))
    return cosine_similarity(left, right, dim=1).tolist()


@lru_cache(maxsize=1)
def video_network(path: Path, frames: int, device: str) -> VideoTransformer:
    """The network of an EgoVLP file; kept, since both metrics use it."""
    state = load_state_dict(path, PARTS)
    return filled(partial(VideoTransformer, frames), state, path).to(device)


def frame_input(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [0, 1] -> (3, 224, 224), normalised.

    Shorter side to 224 (bilinear, not antialiased, as in the released environment), then the
    centre: the sides of a wide frame are lost.
    """
    return normalize(center_crop(resize(image, SIDE, antialias=False), SIDE), MEAN, STD)


def still_videos(pair: Pair, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(generated, target), each (frames, 3, 224, 224): the same image all the time."""
    generated, target = map(frame_input, read_unresized(pair))
    return generated.expand(frames, -1, -1, -1), target.expand(frames, -1, -1, -1)


def videos_with_source(pair: Pair, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(generated, target), each (frames, 3, 224, 224): the source frame, then the image."""
    source = to_tensor(read_source(pair))
    first = frame_input(source).expand(frames // 2, -1, -1, -1)

    def video(image: torch.Tensor) -> torch.Tensor:
        last = frame_input(resized(image, source)).expand(frames - len(first), -1, -1, -1)
        return torch.cat([first, last])

    generated, target = read_unresized(pair)
    return video(generated), video(target)


@torch.inference_mode()
def _measure(name: str, key: str, make, pairs: Sequence[Pair], settings: Settings) -> Measured:
    frames = FRAMES[settings.dataset]
    path = METRICS[name].weight_files(settings)[0]
    network = video_network(path, frames, settings.device)
    read = read_ahead(partial(make, frames=frames), pairs, settings, name)
    values: list[float] = []
    for batch in batches(read, settings.batch_size):
        sides = (torch.stack(videos).to(settings.device) for videos in zip(*batch, strict=True))
        generated, target = map(network, sides)
        values += cosine_similarity(generated, target, dim=1).tolist()
    return Measured({key: finite_mean(values)}, {key: values})


measure = partial(_measure, "egovlp", "egovlp_image_sim", still_videos)
measure_plus = partial(_measure, "egovlp_plus", "egovlp_plus_image_sim", videos_with_source)

"""Layers that take less time on a CPU than torch's own, with the same numbers.

torch lays the weight of a convolution out anew in every call, for oneDNN's kernels; here that
is done once. 3x3 convolutions of larger maps go by minimal filtering, F(2x2, 3x3) (Lavin and Gray
2016, arXiv:1509.09308, section 4.1): 16 products in place of 36 for each 2x2 pixels. A layer keeps
one form of its weight, 16/9 as large in that case.

Letters: B batch, I O channels in and out, H W size of a map, h w how many tiles of 2x2 pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEWEST_CHANNELS, LEAST_PIXELS = 64, 16 * 16  # for which filtering pays
TOGETHER = 1024  # pixels, in whole images, filtered at a time: what is between fits into the cache
SMALL_MAP, LARGE_WEIGHT = 8 * 8, 9 * 640 * 640  # for which training multiplies matrices
KERNEL = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
MAP = ((0, 2, -1), (1, 2, 1), (2, 1, -1), (1, 3, -1))  # pixel a + sign * pixel b, of 4 in a line
LINEAR, SAME = ((0, 0), (1, 1), (1, 1), 1), ((1, 1), (1, 1), (1, 1), 1)  # padding, stride ...


class ReorderedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return _convolution(self, x, (self.padding, self.stride, self.dilation, self.groups))


class ReorderedLinear(nn.Linear):
    """As the 1x1 convolution that it is, for which oneDNN is faster."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor and not self.weight.is_mkldnn:
            return super().forward(x)  # a held context, of which it is computed once
        rows = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, I, 1, rows)
        made = _convolution(self, rows, LINEAR)  # (1, O, 1, rows)
        return made.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class TrainedConv(nn.Conv2d):
    """One of small maps multiplies matrices, its large weight as it lies, where it is 3x3."""

    def forward(self, x: Tensor) -> Tensor:
        how = self.padding, self.stride, self.dilation, self.groups
        large = self.kernel_size == (3, 3) and self.weight.numel() >= LARGE_WEIGHT
        small = x.shape[2] * x.shape[3] <= SMALL_MAP and x.device.type == "cpu"
        if how != SAME or self.bias is None or not (large and small):
            return super().forward(x)
        columns = functional.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)  # (9I, B * H * W)
        made = torch.addmm(self.bias[:, None], self.weight.flatten(1), columns)  # (O, B * H * W)
        return made.view(-1, len(x), *x.shape[2:]).transpose(0, 1)


TRAINED: dict[type, type] = {nn.Conv2d: TrainedConv}
# For evaluation alone: the first call lays weights out, for inputs of its size; the network then
# can be neither saved nor moved nor trained. Nothing is exchanged in builds without oneDNN.
REORDERED: dict[type, type] = {nn.Conv2d: ReorderedConv, nn.Linear: ReorderedLinear}
REORDERED = REORDERED if torch.backends.mkldnn.is_available() else {}


def exchange(network: nn.Module, kinds: Mapping[type, type]) -> None:
    """Give float32 layers of exactly these classes the other ones, in place."""
    for layer in network.modules():
        usual = type(layer) in kinds and getattr(layer, "padding_mode", "zeros") == "zeros"
        if usual and layer.weight.dtype == torch.float32:
            layer.__class__ = kinds[type(layer)]


def _convolution(layer: Any, x: Tensor, how: tuple) -> Tensor:
    """(B, I, H, W) -> (B, O, H, W), with the channels last in memory."""
    weight = layer.weight.detach()
    if weight.ndim != 3 and not weight.is_mkldnn:
        weight = weight if weight.ndim == 4 else weight[:, :, None, None]  # (O, I, 3, 3), say
        large = x.shape[2] * x.shape[3] >= LEAST_PIXELS and min(weight.shape[:2]) >= FEWEST_CHANNELS
        if large and weight.shape[2:] == (3, 3) and how == SAME:
            made = torch.einsum("ai,bj,okij->abko", KERNEL, KERNEL, weight)
            weight = made.contiguous().flatten(0, 1)  # (16, I, O)
        else:  # opaque, right for any size of inputs
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, x.shape)
        layer.weight = nn.Parameter(weight, requires_grad=False)
    if weight.is_mkldnn:
        x = x.contiguous(memory_format=torch.channels_last)
        how = (*how, "none", [], "")
        return torch.ops.mkldnn._convolution_pointwise(x, weight, layer.bias, *how)
    most = min(len(x), TOGETHER // (x.shape[2] * x.shape[3])) or 1
    images = next(n for n in range(most, 0, -1) if len(x) % n == 0)  # equal parts round equally
    return torch.cat([_filter(part, weight, layer.bias) for part in x.split(images)])


def _filter(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution between zeros: (B, I, H, W), (16, I, O), (O,) -> (B, O, H, W)."""
    count, _, height, width = x.shape
    h, w = (height + 1) // 2, (width + 1) // 2
    x = x.permute(0, 2, 3, 1)  # (B, H, W, I)
    x = functional.pad(x, (0, 0, 1, 1 + width % 2, 1, 1 + height % 2))  # (B, 2h + 2, 2w + 2, I)
    tiles = x.new_empty(4, 4, count, h, w, x.shape[3])  # a tile meets 4x4 pixels
    for i, (a, b, sign) in enumerate(MAP):
        line = torch.add(x[:, a::2][:, :h], x[:, b::2][:, :h], alpha=sign)  # (B, h, 2w + 2, I)
        for j, (c, d, side) in enumerate(MAP):
            left, right = line[:, :, c::2][:, :, :w], line[:, :, d::2][:, :, :w]  # (B, h, w, I)
            torch.add(left, right, alpha=side, out=tiles[i, j])
    products = torch.bmm(tiles.view(16, count * h * w, -1), kernel)  # (16, B * h * w, O)
    of = products.view(4, 4, count, h, w, -1)
    made = x.new_empty(count, h, 2, w, 2, of.shape[-1])
    for i, line in enumerate((of[0] + of[1] + of[2], of[1] - of[2] - of[3])):  # (4, B, h, w, O)
        if bias is not None:
            line[1] += bias  # which is in both
        torch.add(line[0] + line[1], line[2], out=made[:, :, i, :, 0])
        torch.sub(line[1] - line[2], line[3], out=made[:, :, i, :, 1])
    return made.view(count, 2 * h, 2 * w, -1)[:, :height, :width].permute(0, 3, 1, 2)

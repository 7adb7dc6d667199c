"""Where the noise of generation comes from: streams of each sample's own, or the released order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from egogen.seeds import stable_seed


class SampleNoise:
    """Noise that belongs to each sample: draw k of sample i depends on (seed, names of i) alone.

    Each sample has a generator of its own on the CPU, so that neither batch composition nor the
    device changes a picture.
    """

    def __init__(self, seed: int, names: Sequence[tuple[str, ...]], shape: tuple[int, ...], device):
        self.generators = [
            torch.Generator().manual_seed(stable_seed(seed, *parts)) for parts in names
        ]
        self.shape, self.device = shape, device

    def __call__(self, index: int) -> Tensor:
        """Draws come in order; `index` is for sources that replay stored noise."""
        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device)


class StoredNoise:
    """Draws that are all there already: (B, draws, c, h, w)."""

    def __init__(self, draws: Tensor):
        self.draws = draws

    def __call__(self, index: int) -> Tensor:
        return self.draws[:, index]


class ProcessNoise:
    """The released order: one stream of the device, seeded once, from which one sample after the
    other takes all its draws. A picture then depends on how many were made before it.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], draws: int, device: torch.device):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.shape, self.count, self.device = shape, draws, device
        self.position = 0

    def _take(self) -> Tensor:
        """(draws, c, h, w) of the next sample, one call a draw, which decides the numbers."""
        self.position += 1
        options = {"generator": self.generator, "device": self.device}
        return torch.cat([torch.randn((1, *self.shape), **options) for _ in range(self.count)])

    def of(self, positions: Sequence[int]) -> StoredNoise:
        """Noise of the samples at rising `positions` of the process; those between, which need not
        be made again, take their draws too.
        """
        draws = []
        for position in positions:
            while self.position < position:
                self._take()
            draws.append(self._take())
        return StoredNoise(torch.stack(draws))

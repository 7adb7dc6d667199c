"""In which order samples are learned."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochOrder(Sampler[int]):
    """A new order of `length` samples in every epoch, from (seed, epoch) alone.

    An epoch is filled up to whole global batches with its own first samples, so that step k learns
    the same samples whatever the number of processes, the batch of each, and the accumulation.
    """

    def __init__(self, length: int, global_batch: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0
        self.total = math.ceil(length / global_batch) * global_batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        yield from (order[place % self.length] for place in range(self.total))

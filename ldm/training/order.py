"""The order of training, of (seed, epoch) alone: a killed run continues with the very batch that an
undisturbed one would have had next.
"""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import BatchSampler, DataLoader

from egogen.seeds import stable_seed

Address = tuple[int, int]  # (epoch, index of the sample): what the dataset is asked for


class EpochBatches:
    """Batches of sample addresses, shuffled per epoch and dealt out to `world` ranks.

    An epoch leaves out what does not fill a batch on every rank (another part each time); data that
    fills none is repeated to do so.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch, self.start = 0, 0
        self.sampler = self  # where Lightning looks for set_epoch

    def __len__(self) -> int:
        return max(1, self.samples // (self.batch_size * self.world))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Address]]:
        start, self.start = self.start, 0  # `start` holds for the first pass after a resume
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.samples, generator=generator).tolist()
        whole = self.batch_size * self.world
        order = (order * -(-whole // len(order)))[: len(self) * whole]
        for batch in range(start, len(self)):
            first = batch * whole + self.rank * self.batch_size
            yield [(self.epoch, index) for index in order[first : first + self.batch_size]]


class ValidationBatches(BatchSampler):
    """Batches of (epoch, index), in order, dealt out to `world` ranks, as many to each.

    What is left over is left out, and samples fewer than ranks go to all of them. `epoch()` is
    asked each time: draws that are not fixed differ from one validation to the next.
    """

    def __init__(
        self, samples: int, batch_size: int, epoch: Callable[[], int], rank: int, world: int
    ):
        even = samples // world * world
        indices = range(even)[rank::world] if even else range(samples)
        super().__init__(indices, batch_size, drop_last=False)
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Address]]:  # type: ignore[override]
        epoch = self.epoch()
        for batch in super().__iter__():
            yield [(epoch, index) for index in batch]


class ResumableLoader(DataLoader):
    """A loader of `EpochBatches` that Lightning saves and restores."""

    batch_sampler: EpochBatches
    position: Callable[[], tuple[int, int]]  # -> (epoch, finished batches); to be set

    def state_dict(self) -> dict[str, int]:
        return dict(zip(("epoch", "done"), self.position(), strict=True))

    def load_state_dict(self, state: dict[str, int]) -> None:
        epochs, self.batch_sampler.start = divmod(state["done"], len(self.batch_sampler))
        self.batch_sampler.epoch = state["epoch"] + epochs

"""What long work has in common: progress, chunks, a lock on its folder, and signals to stop.

Two processes that would write into each other's work take a lock; work is split over the jobs of an
array by one of two rules; training that is asked to stop says by which signal.
"""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from egogen.errors import EgoGenError

Item = TypeVar("Item")
LOG_EVERY_SECONDS = 20.0
# Slurm is asked to send the first before the time limit; the second comes with a preemption.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Progress:
    """Counts finished units: `with Progress(total, "describe", "frames") as bar: bar.update(8)`."""

    def __init__(self, total: int, what: str, unit: str = "items", done: int = 0):
        self.total, self.what, self.unit, self.count = total, what, unit, done
        self.first, self.start = done, time.monotonic()
        self.last_line = self.start
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # slow to import

            shape = {"unit": f" {unit}", "dynamic_ncols": True}
            self.bar = tqdm(total=total, initial=done, desc=what, **shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type, *_) -> None:
        if self.bar is not None:
            self.bar.close()
        elif exception_type is None:
            self._line()

    def close(self) -> None:
        """The end of work that no `with` can be put around."""
        self.__exit__(None)

    def update(self, units: int = 1) -> None:
        self.count += units
        if self.bar is not None:
            self.bar.update(units)
        elif time.monotonic() - self.last_line >= LOG_EVERY_SECONDS:
            self._line()

    def _line(self) -> None:
        self.last_line = time.monotonic()
        rate = (self.count - self.first) / max(self.last_line - self.start, 1e-9)
        left = (self.total - self.count) / rate if rate > 0 else 0.0
        done = f"{self.count}/{self.total} {self.unit}, {rate:.1f}/s, {left:.0f} s left"
        print(f"{self.what}: {done}", file=sys.stderr, flush=True)


def track(items: Iterable[Item], total: int, what: str, unit: str = "items") -> Iterator[Item]:
    """Iterate `items` with progress."""
    with Progress(total, what, unit) as progress:
        for item in items:
            yield item
            progress.update()


def _check_chunk(num_chunks: int, chunk_idx: int) -> None:
    if num_chunks < 1:
        raise EgoGenError(f"number of chunks {num_chunks}: expected at least 1")
    if not 1 <= chunk_idx <= num_chunks:
        raise EgoGenError(f"chunk index {chunk_idx}: expected 1 to {num_chunks}")


def ceil_chunk(items: Sequence[Item], num_chunks: int, chunk_idx: int) -> Sequence[Item]:
    """Stage 1 (clips): pieces of ceil(n / num_chunks); the last ones may be shorter or empty."""
    _check_chunk(num_chunks, chunk_idx)
    size = -(-len(items) // num_chunks)
    return items[size * (chunk_idx - 1) : size * chunk_idx]


def floor_chunk(items: Sequence[Item], num_chunks: int, chunk_idx: int) -> Sequence[Item]:
    """Stage 2 (entries): items [(k-1) n // K, k n // K) for chunk k of K."""
    _check_chunk(num_chunks, chunk_idx)
    count = len(items)
    return items[(chunk_idx - 1) * count // num_chunks : chunk_idx * count // num_chunks]


@contextmanager
def lock(path: Path, doing: str, needed: bool = True) -> Iterator[None]:
    """Hold a lock on the file `path`, which stays behind empty, against other processes.

    The system lets go of it when this process ends, however it ends; loader workers do not inherit
    it. On a file system without locks a note is all there is. `needed` is False in those processes
    of a run for which another one holds it. Raises EgoGenError, "FOLDER: another process is `doing`
    here", where it is held.
    """
    if not needed:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:  # "w" would change its time
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise EgoGenError(f"{path.parent}: another process is {doing} here") from None
            print(f"note: {path}: no locks on this file system ({error.strerror})", file=sys.stderr)
        yield


class StoppedBySignal(EgoGenError):
    """The run was asked to end early; its checkpoint is written."""


def requeue() -> str:
    """Ask Slurm to run this job again; -> what came of it, empty outside Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return ""
    try:
        subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip()
        return f"job {job} was not requeued ({said})"
    return f"job {job} is requeued"

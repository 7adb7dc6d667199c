"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
LOG_EVERY_SECONDS = 20.0


class Progress:
    """Counts finished units: `with Progress(total, "describe", "frames") as bar: bar.update(8)`."""

    def __init__(self, total: int, what: str, unit: str = "items", done: int = 0):
        self.total, self.what, self.unit, self.count = total, what, unit, done
        self.first, self.start = done, time.monotonic()
        self.last_line = self.start
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=total, initial=done, desc=what, unit=f" {unit}", dynamic_ncols=True
            )

    def __enter__(self) -> Progress:
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
        print(
            f"{self.what}: {self.count}/{self.total} {self.unit}, {rate:.1f}/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def track(items: Iterable[Item], total: int, what: str, unit: str = "items") -> Iterator[Item]:
    """Iterate `items` with progress."""
    with Progress(total, what, unit) as progress:
        for item in items:
            yield item
            progress.update()

"""One process at a time where two would write into each other's work."""

from __future__ import annotations

import errno
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from egogen.errors import EgoGenError


@contextmanager
def alone(lock: Path, doing: str, needed: bool = True) -> Iterator[None]:
    """Hold the file `lock`, which stays behind empty, against other processes.

    The system lets go of it when this process ends, however it ends; loader workers do not inherit
    it. On a file system without locks a note is all there is. `needed` is False in those processes
    of a run for which another one holds it. Raises EgoGenError, "FOLDER: another process is `doing`
    here", where it is held.
    """
    if not needed:
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file:  # "w" would change its time
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise EgoGenError(f"{lock.parent}: another process is {doing} here") from None
            print(f"note: {lock}: no locks on this file system ({error.strerror})", file=sys.stderr)
        yield

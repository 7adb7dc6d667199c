"""What a weight file or folder holds, as a digest; each is read once a process while it stays."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


def content_digest(path: Path) -> str:
    """Hex digest of a file, or of the names and contents of every file of a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(f"{path.name}\0".encode())
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

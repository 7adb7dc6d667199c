"""Splitting work over jobs, by the two released rules. Chunk numbers start at 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from egogen.errors import EgoGenError

Item = TypeVar("Item")


def _check(num_chunks: int, chunk_idx: int) -> None:
    if num_chunks < 1:
        raise EgoGenError(f"number of chunks {num_chunks}: expected at least 1")
    if not 1 <= chunk_idx <= num_chunks:
        raise EgoGenError(
            f"chunk index {chunk_idx}: expected 1 to {num_chunks} (the first chunk is 1)"
        )


def ceil_chunk(items: Sequence[Item], num_chunks: int, chunk_idx: int) -> Sequence[Item]:
    """Stage 1 (clips): pieces of ceil(n / num_chunks); the last ones may be shorter or empty."""
    _check(num_chunks, chunk_idx)
    size = -(-len(items) // num_chunks)
    return items[size * (chunk_idx - 1) : size * chunk_idx]


def floor_chunk(items: Sequence[Item], num_chunks: int, chunk_idx: int) -> Sequence[Item]:
    """Stage 2 (entries): items [(k-1) n // K, k n // K) for chunk k of K."""
    _check(num_chunks, chunk_idx)
    count = len(items)
    return items[(chunk_idx - 1) * count // num_chunks : chunk_idx * count // num_chunks]

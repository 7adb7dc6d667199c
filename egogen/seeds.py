"""Randomness that belongs to a sample, not to the order in which samples are visited."""

import hashlib


def stable_seed(seed: int, *names: object) -> int:
    """A 63-bit seed from (seed, names) alone: equal on every machine, process, chunk and batch."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1

"""The contract that both stages share: action files, frames, features, chunks and atomic files."""

from egogen.errors import EgoGenError

__all__ = ["EgoGenError"]

"""Keys and values of what has been decoded so far, in memory that is not copied at every step."""

from __future__ import annotations

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

BLOCK = 64  # spare positions; a description is some 100 tokens


class BlockLayer(DynamicLayer):
    """One layer's cache. The library's own one copies everything at every token, which costs as
    much as the model itself at batch 8; this one copies once in BLOCK tokens.
    """

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._buffers = [self.keys, self.values]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, heads, new, width) each -> all positions so far, (B, heads, length, width)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[2]
        length = start + key_states.shape[2]
        for which, (known, new) in enumerate(
            ((self.keys, key_states), (self.values, value_states))
        ):
            if length > self._buffers[which].shape[2]:
                batch, heads, _, width = new.shape
                self._buffers[which] = new.new_empty(batch, heads, length + BLOCK, width)
                self._buffers[which][:, :, :start] = known
            self._buffers[which][:, :, start:length] = new
        self._view(length)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        length = self.keys.shape[2]
        self._buffers = [buffer[indices.to(buffer.device)] for buffer in self._buffers]
        self._view(length)

    def _view(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def block_cache() -> Cache:
    """An empty cache for a model without sliding windows, such as Llama."""
    return Cache(layer_class_to_replicate=BlockLayer)

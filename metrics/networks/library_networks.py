"""Networks of transformers with weights from a file that the library does not know."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from metrics.networks.loading import fitting


def library_network(
    kind: type[PreTrainedModel], config: PretrainedConfig, state: Mapping, path
) -> PreTrainedModel:
    """A `kind` in evaluation mode whose parameters are the tensors of `state`, not copies of them.

    Raises EgoGenError naming `path` when `state` does not fit.
    """
    with torch.device("meta"):
        fit = fitting(kind(config), state, path)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network = kind.from_pretrained(None, config=config, state_dict=fit)
    finally:
        if shown:
            logging.enable_progress_bar()
    return network.eval().requires_grad_(False)

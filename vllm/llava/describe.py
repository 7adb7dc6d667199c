"""Describing actions in pictures: prompt, picture features, text and text features in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from egogen.errors import EgoGenError
from llava.checkpoint import Loaded
from llava.conversation import escape_marks, prompt_for
from llava.decoding import Decoding, decode
from llava.labels import QUERY, question
from llava.tokens import encode_prompt, expand


class Description(NamedTuple):
    """The enriched description of one action and the features that stage 2 is conditioned on.

    `image_features` (P, D) float16: the projector's output; `text_features` (n, D) float16: one row
    per generated token, the end mark included; `ids` are those tokens.
    """

    text: str
    image_features: np.ndarray
    text_features: np.ndarray
    ids: list[int]


def prompt_ids(loaded: Loaded, action: str, query: str = QUERY) -> list[int]:
    """Ids of the open prompt about `action`, one IMAGE_ID for the picture."""
    text = prompt_for(escape_marks(question(action, query)), loaded.template)
    return encode_prompt(text, loaded.tokenizer)


@torch.inference_mode()
def describe_frames(
    loaded: Loaded,
    images: Sequence[Image.Image],
    actions: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    query: str = QUERY,
    settings: Decoding | None = None,
) -> list[Description]:
    """Describe `actions[i]` (a verb phrase, "pick up the mug") in `images[i]`, all in one batch.

    `seeds[i]` (default 0) decides the sampling of sample i, whatever else is in the batch.
    Raises EgoGenError when the model produces no finite features.
    """
    tokenizer, model = loaded.tokenizer, loaded.model
    features = model.image_features(loaded.image_processor.batch(images))  # (B, P, D)
    prompts = [expand(prompt_ids(loaded, action, query), model.patches) for action in actions]
    written = decode(
        model,
        prompts,
        features,
        seeds=seeds or [0] * len(prompts),
        settings=settings or Decoding(),
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        vocabulary=len(tokenizer),
    )
    pictures = features.to(torch.float16).cpu().numpy()
    if not np.isfinite(pictures).all():
        raise EgoGenError(
            f"{loaded.folder}: image features overflow in half precision, expected finite numbers"
        )
    return [
        Description(
            tokenizer.decode(sample.ids).strip(),
            pictures[row],
            np.stack(sample.rows).astype(np.float16),
            sample.ids,
        )
        for row, sample in enumerate(written)
    ]

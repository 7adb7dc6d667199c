"""Describing actions in pictures: prompt, picture features, text and text features in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from egogen.errors import EgoGenError
from llava.checkpoints.load import Loaded
from llava.conversation import escape_marks, prompt_for
from llava.describing.decoding import Decoding, Written
from llava.describing.engine import Engine, Request, transformers_engine
from llava.describing.teacher_forcing import text_rows
from llava.labels import QUERY, question
from llava.tokens import encode_prompt, expand


class Description(NamedTuple):
    """The enriched description of one action and the features that stage 2 is conditioned on.

    `image_features` (P, D) float16: the projector's output; `text_features` (n, D) float16: one row
    per generated token, the end mark included; `ids` are those tokens; `vision_features` (P, C)
    float16: the projector's input.
    """

    text: str
    image_features: np.ndarray
    text_features: np.ndarray
    ids: list[int]
    vision_features: np.ndarray


def asked(action: str, query: str = QUERY) -> str:
    """The human turn about `action`, without the picture mark."""
    return escape_marks(question(action, query))


def prompt_ids(loaded: Loaded, action: str, query: str = QUERY) -> list[int]:
    """Ids of the open prompt about `action`, one IMAGE_ID for the picture."""
    return encode_prompt(prompt_for(asked(action, query), loaded.template), loaded.tokenizer)


def too_long(loaded: Loaded, action: str, query: str, more: int) -> str:
    """Why the prompt and `more` tokens behind it are no task for the model, or ""."""
    length = len(expand(prompt_ids(loaded, action, query), loaded.model.patches)) + more
    context = loaded.model.config.text_config.max_position_embeddings
    if length <= context:
        return ""
    return f"{length} tokens with prompt, picture and answer, expected at most {context}"


def _half(values: torch.Tensor) -> np.ndarray:
    return values.to(torch.float16).cpu().numpy()


@torch.inference_mode()
def describe_frames(
    loaded: Loaded,
    images: Sequence[Image.Image],
    actions: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    names: Sequence[tuple[str, ...]] | None = None,
    query: str = QUERY,
    settings: Decoding | None = None,
    engine: Engine | None = None,
) -> list[Description]:
    """Describe `actions[i]` (a verb phrase, "pick up the mug") in `images[i]`, all in one batch.

    `seeds[i]` (default 0) decides the sampling of sample i, whatever else is in the batch. `engine`
    writes the text (default: the model itself, by `settings`); `names[i]` is what it knows sample i
    by. Raises EgoGenError when the model produces no finite features.
    """
    model = loaded.model
    engine = engine or transformers_engine(loaded, settings or Decoding())
    vision = model.vision_features(loaded.image_processor.batch(images))  # (B, P, C)
    features = model.model.multi_modal_projector(vision)  # (B, P, D)
    requests = [
        Request(
            name=names[row] if names else (str(row),),
            image=image,
            question=asked(action, query),
            ids=expand(prompt_ids(loaded, action, query), model.patches),
            features=features[row],
            seed=seeds[row] if seeds else 0,
        )
        for row, (image, action) in enumerate(zip(images, actions, strict=True))
    ]
    written = engine(requests)
    rows = _rows(loaded, requests, written)
    pictures, tower = _half(features), _half(vision)
    if not np.isfinite(pictures).all():
        raise EgoGenError(
            f"{loaded.folder}: image features overflow in half precision, expected finite numbers"
        )
    return [
        Description(
            loaded.tokenizer.decode(sample.ids).strip(),
            pictures[row],
            _half(rows[row]),
            sample.ids,
            tower[row],
        )
        for row, sample in enumerate(written)
    ]


def _rows(
    loaded: Loaded, requests: Sequence[Request], written: Sequence[Written]
) -> list[torch.Tensor]:
    """The engine's hidden states, or those of one teacher-forced pass where it keeps none."""
    rows = [sample.rows for sample in written]
    left = [number for number, kept in enumerate(rows) if kept is None]
    if left:
        made = text_rows(
            loaded.model,
            [requests[number].ids for number in left],
            [written[number].ids for number in left],
            torch.stack([requests[number].features for number in left]),
            loaded.tokenizer.pad_id,
        )
        for number, states in zip(left, made, strict=True):
            rows[number] = states
    return rows

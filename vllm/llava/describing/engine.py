"""The seam for what writes the text of descriptions.

An engine is a function from requests to what was written for each. It may keep hidden states
(`Written.rows`) or leave them None, as serving engines do: then they are made by one teacher-forced
pass. The description loop knows no more than this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from egogen.errors import EgoGenError
from llava.checkpoints.load import Loaded
from llava.conversation import IMAGE_MARK, escape_marks
from llava.describing.decoding import (
    Choice,
    Decoding,
    Written,
    decode,
    draw_per_sample,
    draw_released,
    greedy,
)
from llava.model import runs_on
from llava.tokens import IGNORE, encode_conversation


@dataclass(frozen=True)
class Request:
    """A question about a picture: what any engine may need of it.

    `name` is (clip, action); `question` the human turn without the picture mark; `ids` the open
    prompt with the picture expanded to P positions; `features` (P, D) the picture as the language
    model sees it.
    """

    name: tuple[str, ...]
    image: Image.Image
    question: str
    ids: list[int]
    features: torch.Tensor
    seed: int


Engine = Callable[[Sequence[Request]], list[Written]]


def transformers_engine(loaded: Loaded, settings: Decoding, seed: int = 0) -> Engine:
    """Batched decoding with the loaded model. `seed` begins the one stream of released sampling,
    which draws for one sample at a time.
    """
    stream = torch.Generator(runs_on(loaded.model.lm_head)).manual_seed(seed)

    def choice(requests: Sequence[Request]) -> Choice:
        if settings.temperature == 0:
            return greedy
        if settings.sampling == "released":
            return draw_released(settings, stream)
        return draw_per_sample(settings, [request.seed for request in requests])

    def write(requests: Sequence[Request]) -> list[Written]:
        if settings.sampling == "released" and len(requests) > 1:
            return [only for request in requests for only in write([request])]
        return decode(
            loaded.model,
            [request.ids for request in requests],
            torch.stack([request.features for request in requests]),
            choose=choice(requests),
            max_new_tokens=settings.max_new_tokens,
            eos_id=loaded.tokenizer.eos_id,
            pad_id=loaded.tokenizer.pad_id,
            vocabulary=len(loaded.tokenizer),
        )

    return write


def given_texts(loaded: Loaded, texts: Mapping[tuple[str, ...], str]) -> Engine:
    """Writes nothing: gives the texts of `texts` (by `Request.name`), whatever wrote them, as ids.

    The ids are those that tuning has as targets: the text, a space and the end mark.
    """

    def write(requests: Sequence[Request]) -> list[Written]:
        return [Written(answer_ids(loaded, r.question, texts[r.name])) for r in requests]

    return write


def answer_ids(loaded: Loaded, question: str, text: str) -> list[int]:
    """Ids of an answer as tuning has them. Raises EgoGenError for an empty one."""
    text = escape_marks(text.strip().replace(IMAGE_MARK, "< image >"))
    if not text:
        raise EgoGenError(f"question {question!r}: the description is empty, expected text")
    turns = [f"{IMAGE_MARK}\n{question}", text]
    sample = encode_conversation(turns, loaded.template, loaded.tokenizer)
    return [label for label in sample.labels if label != IGNORE]

"""The seam for what writes the texts of LLaVA's descriptions.

An engine only writes: the describer makes the features. It may hand over the hidden states that it
had while writing (`Written.rows`), or leave them None, as serving engines do: then they are made by
one teacher-forced pass.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image

from egogen.errors import EgoGenError
from llava.checkpoints.load import Loaded
from llava.conversation import IMAGE_MARK, escape_marks
from llava.describing.decoding import Decoding, Written, decode, draw_per_sample, greedy
from llava.describing.describer import Name
from llava.tokens import IGNORE, encode_conversation


@dataclass(frozen=True)
class Request:
    """A question about an image: all that any engine may need of it.

    `name` is (clip, action); `question` the human turn without the image mark; `ids` the open
    prompt with the image expanded to P positions; `features` (P, D) the image as the language model
    sees it.
    """

    name: Name
    image: Image.Image
    question: str
    ids: list[int]
    features: torch.Tensor
    seed: int


@dataclass(frozen=True)
class Engine:
    """What writes texts.

    write    a batch of requests -> what was written for each
    longest  question and name of a sample -> the most tokens that its answer may have
    origin   what the texts depend on besides model, question and seed: goes into the provenance
    """

    write: Callable[[Sequence[Request]], list[Written]]
    longest: Callable[[str, Name], int]
    origin: Mapping[str, Any] = field(default_factory=dict)


def transformers_engine(loaded: Loaded, settings: Decoding) -> Engine:
    """Batched decoding with the loaded model; each sample draws from its own seed."""

    def write(requests: Sequence[Request]) -> list[Written]:
        seeds = [request.seed for request in requests]
        return decode(
            loaded.model,
            [request.ids for request in requests],
            torch.stack([request.features for request in requests]),  # (B, P, D)
            choose=greedy if settings.temperature == 0 else draw_per_sample(settings, seeds),
            max_new_tokens=settings.max_new_tokens,
            eos_id=loaded.tokenizer.eos_id,
            pad_id=loaded.tokenizer.pad_id,
            vocabulary=len(loaded.tokenizer),
        )

    # Earlier versions could also draw all samples from one stream, and said so in their records.
    origin = {**asdict(settings), "sampling": "per-sample"}
    return Engine(write, lambda question, name: settings.max_new_tokens, origin)


def given_texts(loaded: Loaded, texts: Mapping[Name, str]) -> Engine:
    """Writes nothing: gives the texts of `texts` (by `Request.name`), whatever wrote them, as ids.

    The ids are those that tuning has as targets: the text, a space and the end mark.
    """

    def ids_of(question: str, name: Name) -> list[int]:
        return answer_ids(loaded, question, texts[name])

    def write(requests: Sequence[Request]) -> list[Written]:
        return [Written(ids_of(request.question, request.name)) for request in requests]

    digest = hashlib.sha256("\0".join(f"{k}{t}" for k, t in sorted(texts.items())).encode())
    origin = {"texts": digest.hexdigest()[:16]}
    return Engine(write, lambda question, name: len(ids_of(question, name)), origin)


def answer_ids(loaded: Loaded, question: str, text: str) -> list[int]:
    """Ids of an answer as tuning has them. Raises EgoGenError for an empty one."""
    text = escape_marks(text.strip().replace(IMAGE_MARK, "< image >"))
    if not text:
        raise EgoGenError(f"question {question!r}: the description is empty, expected text")
    turns = [f"{IMAGE_MARK}\n{question}", text]
    sample = encode_conversation(turns, loaded.template, loaded.tokenizer)
    return [label for label in sample.labels if label != IGNORE]

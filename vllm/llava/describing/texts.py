"""Texts that the describer does not write itself: given ones, or those of a server.

The loop asks for them while it reads the frames, several at once, and the describer makes their
features by one teacher-forced pass a batch.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava.describing.describer import Name


@dataclass(frozen=True)
class TextSource:
    """Where texts come from.

    text     (image, question, seed, name) -> (text, ""), or ("", why there is none): the sample is
             then named and left out. Raises EgoGenError where there will be none for any sample
    origin   what the texts depend on besides question and seed: goes into the provenance
    at_once  how many are asked for at the same time
    stop     no more are asked for: those that are being waited for come to nothing
    """

    text: Callable[[Image.Image, str, int, Name], tuple[str, str]]
    origin: Mapping[str, Any]
    at_once: int = 1
    stop: Callable[[], object] = lambda: None


def given_texts(texts: Mapping[Name, str]) -> TextSource:
    """Texts that are there already, by (clip, action), whatever wrote them."""
    digest = hashlib.sha256("\0".join(f"{k}{t}" for k, t in sorted(texts.items())).encode())
    origin = {"texts": digest.hexdigest()[:16]}
    return TextSource(lambda image, question, seed, name: (texts[name], ""), origin, at_once=8)

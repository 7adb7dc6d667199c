"""Texts that the describer does not write itself: given ones, or those of a server.

The loop asks for them while it reads the frames, several at once, and the describer makes their
features by one teacher-forced pass a batch.
"""

import asyncio
import hashlib
import threading
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from egogen.served import STOP_AFTER, Message, Server, message, said
from llava.describing.describer import Description, Feature, Name
from llava.describing.job import Decoding
from llava.image_processing import ImageProcessor


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


def served_texts(
    args: Namespace, settings: Decoding, frames: ImageProcessor | None = None
) -> TextSource:
    """Texts of the OpenAI-compatible server of the flags, which gets the frame and the question.

    `frames` makes what it sees square (None: as it is). Raises EgoGenError for no possible key or
    address.
    """
    server, loop = Server(args), asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    fields = {"temperature": settings.temperature, "max_tokens": settings.max_new_tokens}
    fields |= {"top_k": settings.top_k} if settings.temperature else {}

    async def ask(asked: Message, seed: int) -> tuple[str, str]:
        text, problem = said(await server.reply([asked], {**fields, "seed": seed % 2**31}))
        server.answered()
        if text and "(length)" in problem:  # is kept, as where the model writes here
            problem = ""
        return text, problem and f"the server's answer {problem}"

    async def answer(asked: Message, seed: int, size: tuple[int, int]) -> tuple[str, str]:
        try:
            return await ask(asked, seed)
        except server.errors as error:
            if not server.sure:  # is it this question, or does it answer none?
                try:
                    await ask(message("What is shown?", Image.new("RGB", size)), 0)
                except server.errors:
                    server.unanswered += 0 if server.sure else STOP_AFTER
            return "", server.failure(error)

    def text(image: Image.Image, question: str, seed: int, name: Name) -> tuple[str, str]:
        image = frames.square(image) if frames else image
        asked = answer(message(question, image, compress_level=1), seed, image.size)
        return asyncio.run_coroutine_threadsafe(asked, loop).result()

    def stop() -> None:
        for task in asyncio.all_tasks(loop):
            loop.call_soon_threadsafe(task.cancel)

    address = args.base_url.rstrip("/").rpartition("@")[2]  # a password may stand in front
    origin = {"sampling": "server", "server": address, "served_model": args.model}
    origin |= {"request": args.request, **asdict(settings)}
    return TextSource(text, origin, args.concurrency, stop)


class TextOnly:
    """A `Describer` without a model: it takes texts as they come, and makes no features.

    Frames are made squares of `image_size` pixels, if any, before they are sent.
    """

    name, features = "--text-only", dict[str, Feature]()

    def __init__(self, image_size: int | None = None):
        self.frames = ImageProcessor(image_size) if image_size else None
        self.provenance: dict[str, Any] = {"image_size": image_size} if image_size else {}

    def too_long(self, question, name, text=None):
        return ""

    def describe(self, images, questions, *, seeds, names, texts=()):
        return [Description(text, {}) for text in texts]

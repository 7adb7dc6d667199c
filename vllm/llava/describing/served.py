"""Texts of an OpenAI-compatible server: it gets the frame and the question."""

import asyncio
import threading
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from PIL import Image

from egogen.served import STOP_AFTER, Message, Server, message, said
from llava.describing.describer import Description, Feature, Name
from llava.describing.job import Decoding
from llava.describing.texts import TextSource


def served_texts(args: Namespace, settings: Decoding) -> TextSource:
    """The texts of the server that the flags of `egogen.served` name.

    Raises EgoGenError for no possible key or address.
    """
    server, loop = Server(args), asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    fields = {"temperature": settings.temperature, "max_tokens": settings.max_new_tokens}
    if settings.temperature:
        fields["top_k"] = settings.top_k

    async def ask(asked: Message, seed: int) -> tuple[str, str]:
        reply = await server.reply([asked], {**fields, "seed": seed % 2**31})
        found = said(reply)
        server.answered()
        return found

    async def answer(asked: Message, seed: int, size: tuple[int, int]) -> tuple[str, str]:
        try:
            return checked(*await ask(asked, seed))
        except server.errors as error:
            if not server.sure:  # is it this question, or does it answer none?
                try:
                    await ask(message("What is shown?", Image.new("RGB", size)), 0)
                except server.errors:
                    server.unanswered += 0 if server.sure else STOP_AFTER
            return "", server.failure(error)

    def text(image: Image.Image, question: str, seed: int, name: Name) -> tuple[str, str]:
        asked = answer(message(question, image, compress_level=1), seed, image.size)
        return asyncio.run_coroutine_threadsafe(asked, loop).result()

    def cancel() -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    address = args.base_url.rstrip("/").rpartition("@")[2]  # a password may stand in front
    origin = {"sampling": "server", "server": address, "served_model": args.model}
    origin |= {"request": args.request, **asdict(settings)}
    return TextSource(text, origin, args.concurrency, lambda: loop.call_soon_threadsafe(cancel))


def checked(text: str, problem: str) -> tuple[str, str]:
    """An answer, and what keeps it from being a description; the limit of tokens does not."""
    if "<think" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        problem = "is a thought, or ends in half a letter"
    elif not problem and not text:
        problem = "is empty"
    elif text and "(length)" in problem:
        problem = ""
    return text, problem and f"the server's answer {problem}"


class TextOnly:
    """A `Describer` without a model: it takes texts as they come, and makes no features."""

    name, provenance = "--text-only", dict[str, Any]()
    features: Mapping[str, Feature] = {}

    def too_long(self, question, name, text=None):
        return ""

    def describe(self, images, questions, *, seeds, names, texts=()):
        return [Description(text, {}) for text in texts]

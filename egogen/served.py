"""Asking a model of an OpenAI-compatible server: requests, answers, when it is given up."""

import asyncio
import json
import os
import re
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from egogen.atomic import parse_json
from egogen.errors import EgoGenError, need_package
from egogen.frames import data_uri, read_rgb
from egogen.jobs import Progress, lock
from egogen.provenance import check_provenance, record_provenance

TRIES = 3  # replies to one question that are looked at
STOP_AFTER = 3  # questions in a row without an answer: the server is at fault then, not they
IMAGE_SIDE = 768  # pixels; models scale larger frames down anyway
Message = Any  # of chat.completions: {"role", "content"}
Key = tuple[str, str]  # of a question: entry, and what is asked about it
Answers = dict[Key, tuple[str, str]]  # text, and what is wrong with it or how it is read


def check_arguments(args: Namespace, *more: str) -> None:
    """Raises EgoGenError for a number out of range, those named in `more` among them."""
    for name in (*more, "concurrency", "requests_per_minute", "timeout"):
        value = getattr(args, name)
        if value is not None and not 0 < value <= 1e6 or args.retries < 0:
            raise EgoGenError(f"--{name} {value}, --retries {args.retries}: expected above 0")
    if not isinstance(args.request, dict):
        raise EgoGenError("--request: expected a JSON object")


def read_key(url: str) -> str:
    """OPENAI_API_KEY, "none" without one. Raises EgoGenError for no possible key or address."""
    need_package("openai", "--base-url")
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
    if not key.isascii() or not key.isprintable():
        raise EgoGenError("OPENAI_API_KEY: expected printable ASCII")
    with suppress(ValueError):  # of the port
        host = re.match(r"https?://[^/?#\s]+(/\S*)?$", url)
        if host and url.isprintable() and urlsplit(url).port != 0:
            return key
    raise EgoGenError("--base-url: expected http://HOST:PORT/v1")


def shown(path: Path) -> Image.Image:
    """An image as models are sent it. Raises EgoGenError as `read_rgb` does."""
    image = read_rgb(path)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return image


def message(text: str, *images: Image.Image, form: str = "PNG", **how: Any) -> Message:
    """A question; images in front of it are sent in this form, saved with the options `how`."""
    if not images:
        return {"role": "user", "content": text}
    shown = [{"type": "image_url", "image_url": {"url": data_uri(x, form, **how)}} for x in images]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def said(reply: str) -> tuple[str, str]:
    """A reply of chat.completions -> (text, what the server says is wrong with it).

    What was thought before it is cut off. Raises ValueError for what is no such reply.
    """
    try:
        choice = json.loads(reply)["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text, refusal = message["content"] or "", message.get("refusal")
        if isinstance(text, list):  # parts, maybe with thoughts among them
            text = "".join(part["text"] for part in text if part["type"] == "text")
        text = text.rpartition("</think>")[2].strip()
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise ValueError(f"expected choices[0].message.content, found {reply[:200]!r}") from None
    if odd := re.search("<think|[\ud800-\udfff]", text):  # a thought without an end, half a letter
        return text, f"holds {odd[0]!r}"
    if ended in ("length", "content_filter"):
        return text, f"was ended by the server ({ended})"
    return text, "refuses" if refusal else "" if text else "is empty"


class Server:
    """That of the flags, for one event loop. Raises EgoGenError for no possible key or address.

    `sure`: it has answered before, so that questions it refuses are refused for what they are.
    """

    def __init__(self, args: Namespace, sure: bool = False):
        self.args, self.sure, self.key = args, sure, read_key(args.base_url)
        self.unanswered, self.free_at = 0, 0.0
        import openai  # slow

        limits = {"max_retries": args.retries, "timeout": args.timeout}
        self.client = openai.AsyncOpenAI(api_key=self.key, base_url=args.base_url, **limits)
        self.errors = (openai.OpenAIError, ValueError)  # of a question without an answer

    def _hidden(self, text: str) -> str:
        """Servers may repeat what they were sent."""
        return text.replace(self.key, "***") if len(self.key) > 7 else text

    async def reply(self, messages: list[Message], fields: dict[str, Any]) -> str:
        """A reply as it came; fields that are None, after those of --request, are left out."""
        fields = {k: v for k, v in {**fields, **self.args.request}.items() if v is not None}
        if self.args.requests_per_minute:
            now = time.monotonic()
            self.free_at = max(now, self.free_at + 60 / self.args.requests_per_minute)
            await asyncio.sleep(self.free_at - now)
        raw = await self.client.chat.completions.with_raw_response.create(
            model=self.args.model, messages=messages, extra_body=fields
        )
        return self._hidden(raw.http_response.text)

    def answered(self) -> None:
        self.unanswered, self.sure = 0, True

    def failure(self, error: Exception) -> str:
        """What is known, in one line, of a question that got no answer.

        Raises EgoGenError where the server refuses key or model, or does not answer any more.
        """
        response, status = getattr(error, "response", None), getattr(error, "status_code", 0)
        found = f"{error} {error.__cause__ or ''}" if response is None else response.text
        text = self._hidden(" ".join(f"{status or ''} {found}".split()))[:400]
        alone = isinstance(error, EgoGenError) or self.sure and 400 <= status < 429
        self.unanswered += not alone
        if status in (401, 404) or self.unanswered >= STOP_AFTER:
            hint = "expected a server up to /v1 that knows model and key"
            raise EgoGenError(f"--base-url: no answer ({text}); {hint}") from None
        return text


def ask_all(
    args: Namespace, out: Path, made_by: dict, asked: dict, answer: Callable, doing: str, unit: str
) -> tuple[Answers, list[str]]:
    """Await `answer(server, asked[key])` where there is none yet -> (answers, a line for each
    question without one). `doing` and `unit` are as "curating" and "actions".

    They lie in `<out>.journal`, beside what made them; those of another origin are refused.
    """
    read_key(args.base_url)
    record, journal = (Path(f"{out}{end}") for end in (".made_by.json", ".journal"))
    check_provenance(record, made_by)
    with lock(out.with_name(f".{out.name}.lock"), doing):
        known, failures = read_journal(journal), list[str]()
        left, server = [key for key in asked if key not in known], Server(args, bool(known))
        bar, waiting = Progress(len(asked), doing, unit, len(asked) - len(left)), iter(left)

        async def worker() -> None:
            for key in waiting:
                try:
                    known[key] = await answer(server, asked[key])
                    record_provenance(record, made_by)
                    with open(journal, "a") as file:
                        print(json.dumps([*key, *known[key]]), file=file, flush=True)
                        os.fsync(file)
                    server.answered()
                    bar.update()
                except (*server.errors, EgoGenError) as error:
                    failures.append(f"entry {key[0]}: {server.failure(error)}")

        async def work() -> None:
            async with server.client:
                await asyncio.gather(*(worker() for _ in range(args.concurrency)))

        with bar:
            asyncio.run(work())
    if failures and not server.sure:
        raise EgoGenError(failures[0])
    return {key: known[key] for key in asked if key in known}, failures


def read_journal(path: Path) -> Answers:
    """What it holds; a line that a kill cut short is removed."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(path, len(whole))
    known = {}
    for number, line in enumerate(whole.splitlines(), 1):
        value = parse_json(line, f"{path}: line {number}")
        if not isinstance(value, list) or list(map(type, value)) != [str] * 4:
            raise EgoGenError(f"{path}: line {number}: expected entry, question, text and flaw")
        known[value[0], value[1]] = value[2], value[3]
    return known

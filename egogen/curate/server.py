"""Asking an OpenAI-compatible server: several questions at once, patiently, within its limits."""

import asyncio
import os
import re
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from egogen.curate.answers import flaw, named_by, said
from egogen.curate.prompts import Message, Prompt
from egogen.errors import EgoGenError
from egogen.seeds import stable_seed

TRIES = 3  # answers to one question that are looked at
STOP_AFTER = 3  # questions in a row without an answer: the server is at fault then, not they
Request = Callable[[Message, int], Awaitable[str]]  # (question, seed) -> reply


def read_key(url: str) -> str:
    """OPENAI_API_KEY, "none" without one. Raises EgoGenError for no possible key or address."""
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
    if not key.isascii() or not key.isprintable():
        raise EgoGenError("OPENAI_API_KEY: expected printable ASCII")
    with suppress(ValueError):  # of the port
        host = re.match(r"https?://[^/?#\s]+(/\S*)?$", url)
        if host and url.isprintable() and urlsplit(url).port != 0:
            return key
    raise EgoGenError("--base-url: expected http://HOST:PORT/v1")


def reason(error: Exception) -> str:
    """What is known of a failed request, in one line."""
    response = getattr(error, "response", None)
    said = f"{error} {error.__cause__ or ''}" if response is None else response.text
    return " ".join(f"{getattr(error, 'status_code', '')} {said}".split())


async def describe(request: Request, prompt: Prompt, seed: int) -> tuple[str, str]:
    """The first good answer, else the last and what is wrong with it; ValueError for none."""
    text = problem = ""
    for number in range(TRIES):
        message = await asyncio.to_thread(prompt.message, problem)
        own = stable_seed(seed, prompt.entry.clip, prompt.entry.action_id, number) % 2**31
        try:
            text, problem = said(await request(message, own))
        except ValueError:
            if number == TRIES - 1:
                raise
            continue
        problem = problem or flaw(text, named_by(prompt.phrase, prompt.boxes))
        if not problem:
            break
    return text, problem


async def ask(
    args: Namespace,
    examples: list[Message],
    prompts: Sequence[Prompt],
    save: Callable[[Prompt, str, str], None],
    sure: bool,
) -> list[str]:
    """`save(prompt, text, what is wrong with it)` as answers come -> a line for each without one.

    `args`: of the command line; those of its `request` that are None are left out. `sure`: this
    server has answered before, and refuses questions for what they are. Raises EgoGenError where it
    refuses key or model, or does not answer any more.
    """
    import openai

    key, waiting, failures = read_key(args.base_url), iter(prompts), []
    unanswered, free_at = 0, 0.0

    def hidden(text: str) -> str:
        """Servers may repeat what they were sent."""
        return text.replace(key, "***") if len(key) > 7 else text

    async def request(message: Message, seed: int) -> str:
        nonlocal free_at
        fields = {"temperature": 0, "max_tokens": 512, "seed": seed, **args.request}
        fields = {name: value for name, value in fields.items() if value is not None}
        if args.requests_per_minute:
            now = time.monotonic()
            free_at = max(now, free_at + 60 / args.requests_per_minute)
            await asyncio.sleep(free_at - now)
        raw = await client.chat.completions.with_raw_response.create(
            model=args.model, messages=[*examples, message], extra_body=fields
        )
        return hidden(raw.http_response.text)

    async def worker() -> None:
        nonlocal unanswered, sure
        for prompt in waiting:
            try:
                save(prompt, *await describe(request, prompt, args.seed))
                unanswered, sure = 0, True
            except (openai.OpenAIError, EgoGenError, ValueError) as error:
                status, text = getattr(error, "status_code", 0), hidden(reason(error))[:400]
                failures.append(f"entry {prompt.entry.key}: {text}")
                alone = isinstance(error, EgoGenError) or sure and 400 <= status < 429
                unanswered += not alone
                if status in (401, 404) or unanswered >= STOP_AFTER:
                    hint = "expected a server up to /v1 that knows model and key"
                    raise EgoGenError(f"--base-url: no answer ({text}); {hint}") from None

    limits = {"max_retries": args.retries, "timeout": args.timeout}
    async with openai.AsyncOpenAI(api_key=key, base_url=args.base_url, **limits) as client:
        await asyncio.gather(*(worker() for _ in range(args.concurrency)))
    if failures and not sure:
        raise EgoGenError(failures[0])
    return failures

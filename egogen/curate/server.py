"""Asking an OpenAI-compatible server: several questions at once, patiently, within its limits."""

import asyncio
import os
import re
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from egogen.curate.answers import flaw, said
from egogen.curate.prompts import Message, Prompt
from egogen.errors import EgoGenError
from egogen.seeds import stable_seed

TRIES = 3  # answers to one question that are looked at
STOP_AFTER = 3  # questions in a row without an answer: the server is at fault then, not they


def read_key(url: str) -> str:
    """OPENAI_API_KEY, "none" without one. Raises EgoGenError for no possible key or address."""
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
    try:
        good = re.match(r"https?://[^/?#\s]+(/\S*)?$", url) and urlsplit(url).port != 0
    except ValueError:
        good = False
    if not good or not key.isascii() or not key.isprintable():
        what = (
            "OPENAI_API_KEY: expected ASCII" if good else "--base-url: expected http://HOST:PORT/v1"
        )
        raise EgoGenError(what)
    return key


async def ask(
    args: Namespace,
    examples: list[Message],
    prompts: Sequence[Prompt],
    save: Callable[[Prompt, str, str], None],
) -> list[str]:
    """`save(prompt, text, what is wrong with it)` as answers come -> a line for each without one.

    Of answers that are no good the last counts. Raises EgoGenError where the server refuses key or
    model, or answers none of several questions. `args`: of the command line; those of its `request`
    that are None are left out.
    """
    import openai

    key, waiting, failures = read_key(args.base_url), iter(prompts), []
    secret = key if len(key) > 7 else "\0"  # servers may repeat what they were sent
    unanswered, free_at = 0, 0.0

    async def describe(client: Any, prompt: Prompt) -> tuple[str, str]:
        nonlocal free_at
        text, problem, entry = "", "", prompt.entry
        for number in range(TRIES):
            messages = [*examples, await asyncio.to_thread(prompt.message, problem)]
            seed = stable_seed(args.seed, entry.clip, entry.action_id, number) % 2**31
            fields = {"temperature": 0, "max_tokens": 512, "seed": seed, **args.request}
            fields = {name: value for name, value in fields.items() if value is not None}
            if args.requests_per_minute:
                now = time.monotonic()
                free_at = max(now, free_at + 60 / args.requests_per_minute)
                await asyncio.sleep(free_at - now)
            raw = await client.chat.completions.with_raw_response.create(
                model=args.model, messages=messages, extra_body=fields
            )
            try:
                text, problem = said(raw.http_response.text.replace(secret, "***"))
            except ValueError:
                if number == TRIES - 1:
                    raise
                continue
            problem = problem or flaw(text, prompt.wanted)
            if not problem:
                break
        return text, problem

    async def worker(client: Any) -> None:
        nonlocal unanswered
        for prompt in waiting:
            try:
                save(prompt, *await describe(client, prompt))
                unanswered = 0
            except (openai.OpenAIError, EgoGenError, ValueError) as error:
                if isinstance(error, openai.APIStatusError):
                    text = f"{error.status_code}: {error.response.text}"
                else:
                    text = f"{error} {error.__cause__ or ''}"
                text = " ".join(text.split()).replace(secret, "***")
                failures.append(f"entry {prompt.entry.key}: {text[:400]}")
                unanswered += not isinstance(error, EgoGenError)  # that is about its frame
                refused = getattr(error, "status_code", 0) in (401, 404)  # key, model, address
                if refused or unanswered >= min(STOP_AFTER, len(prompts)):
                    raise EgoGenError(f"--base-url: no answer ({text[:400]})") from None

    limits = {"max_retries": args.retries, "timeout": args.timeout}
    async with openai.AsyncOpenAI(api_key=key, base_url=args.base_url, **limits) as client:
        await asyncio.gather(*(worker(client) for _ in range(args.concurrency)))
    return failures

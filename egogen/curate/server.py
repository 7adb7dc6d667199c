"""Asking a server about actions: several questions at once, each until an answer is good."""

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence

from egogen.curate.answers import flaw, named_by, said
from egogen.curate.prompts import Message, Prompt
from egogen.errors import EgoGenError
from egogen.seeds import stable_seed
from egogen.served import TRIES, Server

Request = Callable[[Message, int], Awaitable[str]]  # (question, seed) -> reply


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

    `args`: of the command line. `sure`: see `Server`. Raises EgoGenError where that refuses key or
    model, or does not answer any more.
    """
    server, waiting, failures = Server(args, sure), iter(prompts), []

    async def request(message: Message, seed: int) -> str:
        fields = {"temperature": 0, "max_tokens": 512, "seed": seed}
        return await server.reply([*examples, message], fields)

    async def worker() -> None:
        for prompt in waiting:
            try:
                save(prompt, *await describe(request, prompt, args.seed))
                server.answered()
            except (*server.errors, EgoGenError) as error:
                failures.append(f"entry {prompt.entry.key}: {server.failure(error)}")

    async with server.client:
        await asyncio.gather(*(worker() for _ in range(args.concurrency)))
    if failures and not server.sure:
        raise EgoGenError(failures[0])
    return failures

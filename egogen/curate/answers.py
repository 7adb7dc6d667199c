"""Whether an answer is a description of the action that was asked about."""

import re
import tomllib
import unicodedata
from collections.abc import Collection
from itertools import dropwhile, takewhile
from pathlib import Path

from lemminflect import getAllLemmas

from egogen import served

RULES = tomllib.loads(Path(__file__).with_name("answers.toml").read_text("utf-8"))
WORD = re.compile(r"[^\W\d_]+")
REFUSAL = re.compile("|".join(RULES["refusals"]), re.IGNORECASE)


def named_by(phrase: str, objects: Collection[str] = ()) -> set[str]:
    """Words of which a description must have one: the object of a phrase, or what boxes call it.

    "pick up the red mug from the table" -> {"mug"}; "take a slice of bread" -> {"slice", "bread"};
    "stand up again" -> {"stand"}. Empty for phrases in other scripts.
    """
    around, words = RULES["around"].split(), re.findall(r"[a-z]{2,}|[^\w\s'-]", phrase.casefold())
    rest = dropwhile(around.__contains__, words[1:])
    name = " ".join(takewhile(lambda word: word not in around and word.isalpha(), rest))
    boxed = [name for name in objects if not name.endswith(("hand", "hands"))]
    found = [WORD.findall(part.casefold()) for part in (*name.split(" of "), *boxed)]
    kinds = {word: getAllLemmas(word) for part in found for word in part}
    adverbs = {word for word in kinds if "ADV" in kinds[word] and "NOUN" not in kinds[word]}
    heads = {named[-1] for part in found if (named := [w for w in part if w not in adverbs])}
    return (heads or set(words[:1])) if phrase.isascii() else set()


def forms(word: str) -> set[str]:
    return {word, word.rstrip("s")}.union(*getAllLemmas(word).values())


def flaw(text: str, wanted: Collection[str] | None = None) -> str:
    """What keeps a text from being a description; empty where nothing does.

    An answer must have one of the words `wanted`, if any, in any form ("knives") or as the end of
    another ("dishcloth"). None: the text is no answer, and of any length.
    """
    odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Co") or c == "\ufffd"]
    odd += [mark for mark in RULES["marks"] if mark in text]
    if odd or not text:
        return f"holds {odd[0]!r}" if odd else "is empty"
    if wanted is not None and REFUSAL.search(text):
        return "refuses or chats"
    fewest, most = RULES["length"]
    if wanted is not None and not fewest <= len(text) <= most:
        return f"has {len(text)} characters, expected {fewest} to {most}"
    found = {form for word in WORD.findall(text.casefold()) for form in forms(word)}
    ends = {end for word in wanted or () for end in forms(word)}
    missing = ends and not any(form.endswith(tuple(ends)) for form in found)
    return f"does not name {' or '.join(sorted(wanted or ()))}" if missing else ""


def said(reply: str) -> tuple[str, str]:
    """As `egogen.served.said`; the text is one line, without quotation marks around it."""
    text, problem = served.said(reply)
    return " ".join(text.split()).strip('"“”'), problem

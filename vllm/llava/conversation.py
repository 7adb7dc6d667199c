"""Prompt formats: how the turns of a conversation become one string."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from egogen.errors import EgoGenError, check_choice

IMAGE_MARK = "<image>"
END = "</s>"


@dataclass(frozen=True)
class Template:
    """One prompt format. A round is `start + question + ask + " " + answer + close + END`.

    system       the text that tells the model who it is; may be empty
    with_system  the first round's start, around "{system}"
    bare         the first round's start without a system text
    """

    system: str
    with_system: str
    bare: str
    next_start: str
    ask: str
    close: str


_FORMS = yaml.safe_load(Path(__file__).with_name("templates.yaml").read_text("utf-8"))
TEMPLATES = {name: Template(**parts) for name, parts in _FORMS.items()}


def find_template(name: str, what: str = "conversation template") -> Template:
    check_choice(f"{what} ", name, TEMPLATES)
    return TEMPLATES[name]


def rounds_of(turns: Sequence[str | None], template: Template) -> list[tuple[str, str | None]]:
    """(instruction, which ends where the model takes over; answer) of each round.

    Turns alternate question, answer; the last answer may be None (the model is to write it).
    """
    if len(turns) % 2 or not turns:
        raise EgoGenError(f"conversation of {len(turns)} turns: expected questions with answers")
    rounds, system = [], template.system
    start = template.with_system.replace("{system}", system) if system else template.bare
    for index in range(0, len(turns), 2):
        answer = turns[index + 1]
        closed = None if answer is None else f" {answer}{template.close}"
        rounds.append((f"{start}{turns[index]}{template.ask}", closed))
        start = template.next_start
    return rounds


def render(turns: Sequence[str | None], template: Template) -> str:
    """The conversation as the model reads it (without the beginning mark `<s>`)."""
    rounds = rounds_of(turns, template)
    return "".join(asked + ("" if answer is None else answer + END) for asked, answer in rounds)


def prompt_for(question: str, template: Template) -> str:
    """The open prompt for one question about one image."""
    return render([f"{IMAGE_MARK}\n{question}", None], template)


_MARKS = ("<s>", END, "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def escape_marks(text: str, marks: Iterable[str] = _MARKS) -> str:
    """Take prompt marks inside user text apart ("</s>" -> "< /s>"), so that they stay text."""
    for mark in marks:
        text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def chat_template(template: Template) -> str:
    """The template as transformers reads it (Jinja): renders messages to what `render` gives."""
    values = {name.upper(): value for name, value in vars(template).items()}
    values |= {"IMAGE": IMAGE_MARK, "END": END, "MARKS": _MARKS}
    sets = "".join(f"{{%- set {name} = {json.dumps(value)} %}}\n" for name, value in values.items())
    return sets + Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")

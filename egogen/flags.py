"""The flags of commands: a commands.toml beside the code says what each of them takes."""

import json
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from egogen.errors import EgoGenError, command_parser

COMMANDS = Path(__file__).with_name("commands.toml")  # those of this room
TYPES = {"path": Path, "int": int, "float": float, "json": json.loads}
Choices = Mapping[str, Collection]  # of a flag, by the name of its value


def read_command(file: Path, command: str) -> dict[str, Any]:
    """What a commands.toml says of a command."""
    return tomllib.loads(file.read_text("utf-8"))[command]


def read_parser(
    file: Path, command: str, about: str | None, choices: Choices | None = None, **defaults: Any
) -> ArgumentParser:
    """The parser of a command of `file`: there stand its `flags`, and maybe `prog` and `examples`.

    Flags of the parts that it names as `shared` come first. `choices` and `defaults` are those that
    the code knows, by the names of the values.
    """
    known = read_command(file, command)
    parser = command_parser(about, known.get("examples"), known.get("prog"))
    for part in (*known.get("shared", ()), command):
        add_flags(parser, file, part, choices)
    parser.set_defaults(**defaults)
    return parser


def _at_least(flag: str, least: float, read: Callable[[str], Any]) -> Callable[[str], Any]:
    @wraps(read)  # argparse says its name
    def number(text: str) -> Any:
        if not (value := read(text)) >= least:  # NaN is neither
            raise EgoGenError(f"{flag} {value}: expected at least {least}")
        return value

    return number


def add_flags(
    parser: ArgumentParser, file: Path, command: str, choices: Choices | None = None
) -> None:
    """Add the flags of a command: fields are those of `add_argument`, a `type` is one of TYPES.

    Of those with `either` one can be given; a key may have a short name too, as "-n --name". Values
    below the `least` one raise EgoGenError.
    """
    group: Any = None
    for flag, options in read_command(file, command)["flags"].items():
        place: Any = parser
        if options.pop("either", False):
            place = group = group or parser.add_mutually_exclusive_group()
        if "type" in options:
            options["type"] = TYPES[options["type"]]
        if "least" in options:
            options["type"] = _at_least(flag.split()[0], options.pop("least"), options["type"])
        action = place.add_argument(*flag.split(), **options)
        action.choices = (choices or {}).get(action.dest, action.choices)

"""The flags of commands: a commands.toml beside the code says what each of them takes."""

import json
import tomllib
from argparse import ArgumentParser
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from egogen.errors import command_parser

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


def add_flags(
    parser: ArgumentParser, file: Path, command: str, choices: Choices | None = None
) -> None:
    """Add the flags of a command: fields are those of `add_argument`, a `type` is one of TYPES.

    Of those with `either` one can be given; a key may have a short name too, as "-n --name".
    """
    group: Any = None
    for flag, options in read_command(file, command)["flags"].items():
        place: Any = parser
        if options.pop("either", False):
            place = group = group or parser.add_mutually_exclusive_group()
        if "type" in options:
            options["type"] = TYPES[options["type"]]
        action = place.add_argument(*flag.split(), **options)
        action.choices = (choices or {}).get(action.dest, action.choices)

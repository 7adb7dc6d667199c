"""The commands that `pip install` puts on the path: each calls the `main` of a module."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from egogen.errors import run_command
from egogen.flags import read_command

INSTALLED = read_command(Path(__file__).with_name("commands.toml"), "installed")


def __getattr__(name: str) -> Callable[[], None]:
    """The command `name`, as pyproject.toml asks for it, of the module that commands.toml names."""
    if name not in INSTALLED:
        raise AttributeError(name)
    return lambda: run_command(lambda argv: import_module(INSTALLED[name]).main(argv))

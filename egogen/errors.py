"""One error type for everything a user can put right, and the wrapper every command runs in."""

import argparse
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec

EXIT_INCOMPLETE = 1  # the work ran, and something in it was reported as wrong or left out
EXIT_BAD_INPUT = 2  # the work could not run: bad input, bad usage, no space


class EgoGenError(Exception):
    """Bad input or a failed expectation; the message is one line: file, entry, expectation."""


LISTED = 20  # items that one line names
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
WRONG_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def _message(error: Exception) -> str | None:
    """One line for the user, with what to do about no space, no permission or a file where a folder
    goes (also where safetensors or torch hide a full disk in a text). None for bugs.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, EgoGenError):
        return text
    number = error.errno if isinstance(error, OSError) else None
    full = number is None and os.strerror(errno.ENOSPC) in str(error)
    if number in WRONG_PLACE:
        advice = "choose another path"
    elif number in NO_ROOM or full:
        advice = "nothing was half-written, make room and run the same command again"
    else:
        return None
    place = getattr(error, "filename2", None) or getattr(error, "filename", None) or "output"
    return f"{place}: {getattr(error, 'strerror', None) or text}; {advice}"


def listed(items: Sequence[object], between: str = ", ") -> str:
    """The first items in one line, and how many more there are."""
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return between.join(map(str, items[:LISTED])) + more


def check_choice(what: str, value: object, choices: Collection) -> None:
    """Raises EgoGenError that lists the choices where a value is none of them. `what` stands right
    before the value: "layout ", "config: inference.sampler=".
    """
    if value not in choices:
        raise EgoGenError(f"{what}{value!r}: expected one of {', '.join(map(str, choices))}")


def need_package(package: str, flag: str) -> None:
    """Raises EgoGenError where a package that only `flag` asks for is not installed."""
    if find_spec(package) is None:
        raise EgoGenError(f"{flag}: the package is not installed, expected: pip install {package}")


def command_parser(
    about: str | None, example: str | None = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """A parser whose help leaves the lines of both texts (of a docstring, say) as they are."""
    lines = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog, description=about, epilog=example, formatter_class=lines)


def run_command(
    main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> None:
    """Run `main(argv)` and exit: its return value, or one clear line on stderr and a code for it.

    `--debug` anywhere on the command line shows the traceback instead of hiding it. Errors that are
    not the user's to mend (bugs) always show it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr does: \xf6 where o umlaut is lacking
        sys.stdout.reconfigure(errors="backslashreplace")
    debug = "--debug" in argv
    try:
        code = main([argument for argument in argv if argument != "--debug"]) or 0
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    raise SystemExit(code)

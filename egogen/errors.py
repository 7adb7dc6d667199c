"""One error type for everything a user can put right, and the wrapper every command runs in."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence

EXIT_INCOMPLETE = 1  # the work ran, and something in it was reported as wrong or left out
EXIT_BAD_INPUT = 2  # the work could not run: bad input, bad usage, no space


class EgoGenError(Exception):
    """Bad input or a failed expectation; the message is one line: file, entry, expectation."""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _cannot_write(error: BaseException) -> bool:
    """No space or no permission, also where a library (safetensors, torch) hides it in a text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    return os.strerror(errno.ENOSPC) in str(error)


def run_command(
    main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> None:
    """Run `main(argv)` and exit: its return value, or one clear line on stderr and a code for it.

    `--debug` anywhere on the command line shows the traceback instead of hiding it. Errors that are
    not the user's to mend (bugs) always show it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    try:
        code = main(argv) or 0
    except EgoGenError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except Exception as error:
        if not _cannot_write(error):
            raise
        if debug:
            traceback.print_exc()
        place = getattr(error, "filename", None) or "output"
        print(
            f"error: {place}: {getattr(error, 'strerror', None) or _one_line(error)}; nothing was "
            "half-written, make room and run the same command again",
            file=sys.stderr,
        )
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    raise SystemExit(code)

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


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
WRONG_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def _cannot_write(error: BaseException) -> str | None:
    """What to do about no space, no permission or a file where a folder goes; None for bugs.

    Also where a library (safetensors, torch) hides a full disk in a text.
    """
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in WRONG_PLACE:
            return "choose another path"
        if error.errno not in NO_ROOM:
            return None
    elif os.strerror(errno.ENOSPC) not in str(error):
        return None
    return "nothing was half-written, make room and run the same command again"


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
        advice = _cannot_write(error)
        if advice is None:
            raise
        if debug:
            traceback.print_exc()
        place = getattr(error, "filename", None) or "output"
        print(
            f"error: {place}: {getattr(error, 'strerror', None) or _one_line(error)}; {advice}",
            file=sys.stderr,
        )
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    raise SystemExit(code)

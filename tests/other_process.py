"""A process beside the test's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).parents[1]


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Another process works in the folder of `lock`."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom egogen.jobs import lock\n"
        "with lock(Path(sys.argv[1]), 'working'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(lock)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=PROJECT, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield
        process.kill()

"""The server that users of transformers run, on loopback: `transformers serve FOLDER`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CODE = "from transformers.cli.transformers import main; main()"


@contextmanager
def serving_folder(model: Path, log: Path) -> Iterator[str]:
    """Its address, up to /v1; the model's name there is its folder."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(log.parent),
        "OMP_NUM_THREADS": "1",
    }
    line = [sys.executable, "-c", CODE, "serve", str(model), "--host", "127.0.0.1", "--port", "0"]
    with (
        open(log, "w") as file,
        subprocess.Popen(
            [*line, "--device", "cpu"], env=environment, stdout=file, stderr=file
        ) as process,
    ):
        try:
            yield address(log, process)
        finally:
            process.terminate()


def address(log: Path, process: subprocess.Popen) -> str:
    """Where it listens, as it says when it is ready."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            if "running on http" in line:
                return f"http{line.split('running on http', 1)[1].split()[0]}/v1"
        time.sleep(0.1)
    raise AssertionError(log.read_text())

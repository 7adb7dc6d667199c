"""A program that stands for `python` and starts at once: the libraries are loaded already.

Training stage 2 takes seconds of work in such a test, and ten seconds of importing before it. Here
one process imports, and each command runs in a fork of it, with the folder, the environment and the
standard streams of whoever called. Entries themselves are not imported before. That a command runs
in a new process as well is what other tests show: of Slurm, of two processes, of each entry.

    python tests/warm_python.py FOLDER serve              # the process with the libraries
    python tests/warm_python.py FOLDER X.py|-m X|-c X ... # asks it
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
LOADED = ("ldm.training.run", "ldm.generate", "llava.train.trainer", "llava.train.hub_tuning")
LOADED += ("llava.describing.llava_describer", "multiprocessing.spawn", "concurrent.futures")
LONGEST = 200_000  # bytes of arguments and environment


@contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """-> the program, as long as the context lasts."""
    program, words = folder / "python", [sys.executable, str(Path(__file__).resolve()), str(folder)]
    program.write_text(f'#!/bin/sh\nexec {shlex.join([words[0], "-IS", *words[1:]])} "$@"\n')
    program.chmod(0o755)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT / 'vllm'}"}
    with subprocess.Popen([*words, "serve"], env=environment, **pipes) as process:
        assert process.stdout.readline() == b"ready\n"
        yield program
        process.stdin.close()  # it ends, as it does when the tests are killed


def serve(folder: Path) -> None:
    """Answer callers until stdin ends; returns in each fork that has a command to run."""
    for name in LOADED:
        importlib.import_module(name)
    sys.executable = str(folder / "python")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        os.chdir(folder)  # a longer path may be too long for a socket
        listening.bind("socket")
        listening.listen()
        print("ready", flush=True)
        while listening in select.select([listening, sys.stdin], [], [])[0]:
            connection = listening.accept()[0]
            if not os.fork():
                break
            connection.close()
        else:
            return
    data, streams, *_ = socket.recv_fds(connection, LONGEST, 3)
    if child := os.fork():
        if connection in select.select([os.pidfd_open(child), connection], [], [])[0]:
            os.kill(child, signal.SIGKILL)  # whoever asked is gone
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.send(str(code).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    run(**json.loads(data))


def run(words: list[str], where: str, environment: dict[str, str]) -> None:
    """As the interpreter does it with these words."""
    os.chdir(where)
    os.environ.clear()
    os.environ.update(environment)
    kind, *rest = words
    first = {"-m": where, "-c": ""}.get(kind, str(Path(kind).resolve().parent))
    sys.path[:1] = [first, *filter(None, environment.get("PYTHONPATH", "").split(":"))]
    sys.argv = rest if kind in ("-m", "-c") else words
    if kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(rest[0], {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")


def ask(folder: str, words: list[str]) -> int:
    """Exit code of the command, which has this process's streams."""
    request = {"words": words, "where": os.getcwd(), "environment": dict(os.environ)}
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect("socket")
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        return int(connection.recv(100) or 1)


if __name__ == "__main__":
    if sys.argv[2:] == ["serve"]:
        serve(Path(sys.argv[1]))
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))

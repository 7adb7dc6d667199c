"""Run entries one after the other, each in a fork of its own, and say which modules they loaded.

Reads {name: [entry, arguments]} as JSON from stdin and prints {name: [exit code, stderr, heavy
modules]}. An entry is a script's path, a module's name, or `lego:NAME` for what `pip install` puts
on the path as `lego-NAME`. Nothing heavy is loaded here, so that a fork stands for a new process.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

import numpy  # noqa: F401  these are needed by many, and light
import omegaconf  # noqa: F401
from PIL import Image  # noqa: F401

PROJECT = Path(__file__).parents[1]
HEAVY = "torch transformers diffusers lightning pytorch_lightning torchvision torchmetrics "
HEAVY += "accelerate peft scipy matplotlib av open_clip deepspeed sentencepiece tokenizers jinja2 "
HEAVY += "openai gradio"


def start(entry: str, arguments: list[str]) -> None:
    sys.argv = [entry, *arguments]
    if entry.startswith("lego:"):
        from lego import commands

        getattr(commands, entry.removeprefix("lego:"))()
    elif entry.endswith(".py"):
        runpy.run_path(str(PROJECT / entry), run_name="__main__")
    else:
        runpy.run_module(entry, run_name="__main__", alter_sys=True)


def run(entry: str, arguments: list[str]) -> list:
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as report:
        if not os.fork():
            os.dup2(errors.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code: object = 0
            try:
                start(entry, arguments)
            except SystemExit as stopped:
                code = stopped.code
            finally:
                loaded = {name.split(".")[0] for name in sys.modules}
                report.write(json.dumps([code, sorted(loaded & set(HEAVY.split()))]))
                report.flush()
                sys.stderr.flush()
                os._exit(0)
        os.wait()
        for file in (errors, report):
            file.seek(0)
        code, heavy = json.load(report)
        return [code, errors.read(), heavy]


if __name__ == "__main__":
    sys.path[0] = str(PROJECT)
    sys.path.insert(1, str(PROJECT / "vllm"))
    print(json.dumps({name: run(*case) for name, case in json.load(sys.stdin).items()}))

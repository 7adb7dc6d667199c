"""Runs of the judge for its tests: the command, what a server gets of it, what it leaves."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

from chat_server import ChatServer, question_of
from PIL import Image

from egogen import layout
from metrics.reporting import judged


def line(root: Path, server: ChatServer | Any, *more: object, out: str = "run/judge") -> list[str]:
    words = ["--gen_path", root / "run/images", "--out", root / out, "--model", "m"]
    words += ["--source-path", layout.frame_folder(root, "ego4d", "val")]
    words += ["--edit_file", layout.action_file(root, "ego4d", "val"), "--retries", "0"]
    return [str(word) for word in (*words, "--base-url", server.url(), *more)]


def figures(root: Path, out: str = "run/judge") -> dict:
    return json.loads((root / out / "judge.json").read_text())


def readings(root: Path, out: str = "run/judge") -> dict[str, dict[str, str]]:
    with open(root / out / "judge.csv", newline="") as file:
        return {row.pop("sample"): row for row in csv.DictReader(file)}


def asked_of(body: dict) -> tuple[str, list[Image.Image], str]:
    """(name of the question, the two images, the text) as a server gets them."""
    *images, _ = body["messages"][-1]["content"]
    text = question_of(body)
    (name,) = [name for name, part in judged.QUESTIONS.items() if part in text]
    data = [base64.b64decode(image["image_url"]["url"].partition(",")[2]) for image in images]
    return name, [Image.open(io.BytesIO(part)) for part in data], text

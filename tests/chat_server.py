"""A chat server that answers from templates what it is asked about an action, or wrongly.

The part of the address before /v1 names a fault of every answer (`server.url("html")`); `faults`
names those of the next ones.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789"  # what tests put into OPENAI_API_KEY


def question_of(body: dict[str, Any]) -> str:
    """The text of the last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def described(question: str) -> str:
    """A description made of label and boxes alone."""
    action = question.splitlines()[0].removeprefix("Action: ")
    found = re.search(r"Objects: ([\w ]+) \((\d+), \d+, (\d+), ", question)
    side = "left" if found and int(found[2]) + int(found[3]) < 100 else "right"
    where = f" the {found[1]} on the {side}" if found else " what is needed"
    return f"With the {side} hand, the person reaches for{where} to {action}, and does so slowly."


def completion(text: Any, reason: str = "stop", **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **fields}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


GOOD = "The right hand {}, as the other one rests on the table beside it without moving."
TEXTS: dict[str, Any] = {  # fault -> what is answered in place of a description
    "yes": "Yes.",
    "nothing": "",
    "blank": " \n ",
    "short": "thing",
    "long": "The right hand picks up the thing. " * 99,
    "sorry": "I'm sorry, but I can't help with the thing that is to be picked up here.",
    "machine": "As an AI language model, I have no hands with which to pick up a thing.",
    "other": GOOD.format("stirs the soup"),
    "control": GOOD.format("picks up the thing\x07"),
    "half": GOOD.format("picks up the thing \ud83d"),
    "thought": "<think>The right hand picks up the thing, or rather",
    "mark": GOOD.format("picks up the thing of the <image>"),
    "number": 7,
    "list": ["thing"],
    "null": None,
}
BODIES: dict[str, bytes] = {
    "html": b"<html>Welcome to the model's page</html>",
    "nonsense": b'{"choices": [{"message": ',
    "choices": b'{"choices": []}',
    "words": b'{"choices": "thing"}',
    "array": b"[1, 2]",
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
}
STATUSES = {
    "401": "Incorrect API key provided: {key}",
    "403": "not for you",
    "404": "no such model",
}
STATUSES |= {"400": "max_tokens is not supported", "429": "too many", "500": "oh", "503": "busy"}


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.answer_to: Callable[[dict[str, Any]], Any] = lambda body: described(question_of(body))
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.delay = 0.0
        self.together: threading.Barrier | None = None  # so many answers are given at once
        self.busy, self.most, self.counting = 0, 0, threading.Lock()  # questions at once

    def url(self, fault: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}/{fault + '/' if fault else ''}v1"

    def questions(self) -> list[str]:
        return [question_of(body) for body in self.asked]

    def handle_error(self, *_):
        """Clients hang up."""


class Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        with self.server.counting:
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
        try:
            self.reply()
        finally:
            with self.server.counting:
                self.server.busy -= 1

    def reply(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(body)
        server.times.append(time.monotonic())
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        server.keys.append(key)
        fault = self.path.split("/")[1].removesuffix("v1")
        if server.faults:
            fault = server.faults.pop(0)
        if not self.path.endswith("/v1/chat/completions"):
            fault = "404"
        if server.together:
            server.together.wait(60)
        time.sleep(30 if fault == "slow" else server.delay)
        if fault in STATUSES:
            text = STATUSES[fault].format(key=key)
            self.answer(int(fault), {"error": {"message": text, "type": "t", "code": None}})
        elif fault in BODIES:
            kind = "text/html" if fault == "html" else "application/json"
            self.send(200, BODIES[fault], kind)
        elif fault in ("tokens", "filter"):
            reason = {"tokens": "length", "filter": "content_filter"}[fault]
            self.answer(200, completion(server.answer_to(body), reason))
        elif fault == "tools":
            self.answer(200, completion(None, "tool_calls", tool_calls=[{"type": "function"}]))
        elif fault == "refusal":
            self.answer(200, completion(None, refusal="no"))
        elif fault in TEXTS:
            self.answer(200, completion(TEXTS[fault]))
        else:
            self.answer(200, completion(server.answer_to(body)), cut=fault == "cut")

    def answer(self, status: int, value: Any, cut: bool = False) -> None:
        self.send(status, json.dumps(value).encode(), "application/json", cut)

    def send(self, status: int, data: bytes, kind: str, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if status in (429, 503):
            self.send_header("Retry-After", "0.2")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


@contextmanager
def serving() -> Iterator[ChatServer]:
    with ChatServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def beside(command: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """`command` beside a server: {chat} stands for its address, {chat:html} for a fault's."""

    def run(argv: Sequence[str]) -> int:
        kept = os.environ.get("OPENAI_API_KEY")
        with serving() as server:
            os.environ["OPENAI_API_KEY"] = kept or KEY
            words = [re.sub(r"{chat:?(\w*)}", lambda m: server.url(m[1]), word) for word in argv]
            try:
                return command(words)
            finally:
                os.environ.pop("OPENAI_API_KEY")
                if kept:
                    os.environ["OPENAI_API_KEY"] = kept

    return run

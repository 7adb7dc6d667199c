"""The page of `lego.demo` on tiny models, a server of the test's own, and ways to speak to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import torch
from small_model import params_of, random_weights, write_config
from vllm_tiny import write_released

from ldm.checkpoints.layouts import to_own

ROOT = Path(__file__).parents[1]


def tiny_models(root: Path) -> list[str]:
    """Words of a command that name tiny models in this folder."""
    overrides = [f"model.params.conditioner.{k}" for k in ("feature_dim=64", "image_rows=256")]
    config = write_config(root)
    weights = random_weights(params_of(config, *overrides), ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights)}, root / "frame.ckpt")
    words = ["--vllm", write_released(root / "vllm"), "--ldm", root / "frame.ckpt"]
    words += ["--config", config, "--device", "cpu", "--seed", "7", "data.params.res=32"]
    return [*map(str, words), *overrides]


def command(*words: str, **environment: str) -> subprocess.Popen:
    """`python -m lego.demo` with these words; what is outside is behind a proxy that is dead."""
    dead = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy")}
    clean = {name: x for name, x in os.environ.items() if name not in ("PYTHONPATH", "no_proxy")}
    return subprocess.Popen(
        [sys.executable, "-m", "lego.demo", *words],
        cwd=ROOT,
        env={**clean, **dead, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass
class Server:
    process: subprocess.Popen
    address: str
    log: Path

    @classmethod
    def start(cls, root: Path, *words: str) -> Server:
        """Its own folder for temporary files is `root`/tmp, its log `root`/log."""
        (root / "tmp").mkdir()
        process = command(*words, TMPDIR=str(root / "tmp"))
        said = ""
        for line in process.stdout:  # type: ignore[union-attr]
            said += line
            if line.startswith("page: "):
                break
        else:
            raise AssertionError(said)
        with open(root / "log", "w") as log:  # what it writes later must not fill the pipe
            subprocess.Popen(["cat"], stdin=process.stdout, stdout=log)
        return cls(process, line.removeprefix("page: ").strip(), root / "log")

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=30)

    def peak(self) -> int:
        """Most memory that it ever held, in MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) >> 10

    def upload(self, name: str, data: bytes) -> str:
        """-> the path under which the server keeps it."""
        files = {"files": (name, data)}
        answer = httpx.post(f"{self.address}gradio_api/upload", files=files, trust_env=False)
        answer.raise_for_status()
        return answer.json()[0]

    def file(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.address}gradio_api/file={path}", trust_env=False)


@dataclass
class Client:
    """A client without a browser: calls what the page's buttons call, with any data."""

    server: Server
    session: str = field(default_factory=lambda: uuid4().hex[:11])

    def __post_init__(self):
        self.config = httpx.get(f"{self.server.address}config", trust_env=False).json()

    def call(self, target: str, event: str, data: list[Any]) -> dict[str, Any]:
        """-> what the last message says: {"success": ..., "output": {"data" or "error": ...}}."""
        parts = {c["id"]: c["props"].get("elem_id") for c in self.config["components"]}
        (fn,) = [
            each["id"]
            for each in self.config["dependencies"]
            if any((parts.get(part), what) == (target, event) for part, what in each["targets"])
        ]
        api = f"{self.server.address}gradio_api/queue"
        body = {"data": data, "fn_index": fn, "session_hash": self.session}
        httpx.post(f"{api}/join", json=body, trust_env=False).raise_for_status()
        query = {"session_hash": self.session}
        with httpx.stream("GET", f"{api}/data", params=query, timeout=60, trust_env=False) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("no answer")

    def make(self, photo: Any, action: Any = "open the jar", **more: Any) -> dict[str, Any]:
        """Press "Make the frame" with these fields."""
        fields = {"text": "", "sampler": "euler_ancestral", "steps": 2, "scales_txt": 7.5}
        fields |= {"scales_img": 1.5, "seed": 0, "seeds": 1, "temperature": 0.2, **more}
        return self.call("make", "click", [None, photo, action, *fields.values()])


def as_file(path: str, name: str = "photo.jpg") -> dict[str, Any]:
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def wait_until(what, seconds: float = 30) -> Any:
    """The first true value of `what()`."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
    return value

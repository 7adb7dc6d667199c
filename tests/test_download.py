"""Downloads against a server that drops connections, changes files and lies."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from other_process import held
from zip_archives import packed

from egogen.download import fetch as fetching
from egogen.download.fetch import Patience, fetch
from egogen.download.group import Item, choose, fetch_group, plan, verify
from egogen.download.unpack import unpack
from egogen.errors import EgoGenError

PROJECT = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(tries=3, first_wait=0.01, longest_wait=0.02)


class Server(ThreadingHTTPServer):
    """Serves `files`; `cuts`: after how many bytes the next answers break off; counts requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/a.bin": CONTENT}
        self.cuts: list[int] = []
        self.statuses: list[int] = []  # answered instead, first
        self.ranges, self.etags, self.length = True, True, True
        self.kind = "application/octet-stream"
        self.seen: list[tuple[str, str | None]] = []

    def handle_error(self, *_):
        """A client that hangs up is what is tested here."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.seen.append((self.path, asked))
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        content = server.files[self.path]
        etag = '"' + hashlib.sha256(content).hexdigest()[:16] + '"'
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") == etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self.send_response(416)
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.kind)
        if server.length:
            self.send_header("Content-Length", str(len(content) - start))
        if server.etags:
            self.send_header("ETag", etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        body = content[start:]
        if server.cuts:
            body = body[: server.cuts.pop(0)]
        self.wfile.write(body)


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# --- one file


def test_whole(server, tmp_path):
    assert fetch(f"{server.address}/a.bin", tmp_path / "a.bin", DIGEST, QUICK) == DIGEST
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert leftovers(tmp_path) == []


def test_dropped_connections_continue_where_they_broke_off(server, tmp_path):
    server.cuts = [300_000, 200_000, 1, 400_000]  # more than `tries`: each made progress
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", DIGEST, QUICK)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    asked = [value for _, value in server.seen]
    assert asked == [
        None,
        "bytes=300000-",
        "bytes=500000-",
        "bytes=500001-",
        "bytes=900001-",
    ]


def test_a_later_call_continues(server, tmp_path):
    server.cuts, server.files["/b.bin"] = [300_000, 0, 0, 0], b""
    with pytest.raises(EgoGenError, match="given up after 3 tries without progress"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", DIGEST, QUICK)
    assert not (tmp_path / "a.bin").exists()
    server.cuts = []
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", DIGEST, QUICK)
    assert server.seen[-1] == ("/a.bin", "bytes=300000-")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_file_that_changed_in_between_begins_again(server, tmp_path):
    server.cuts = [300_000, 0, 0]
    with pytest.raises(EgoGenError):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", None, Patience(2, 0.01, 0.01))
    server.files["/a.bin"], server.cuts = CONTENT[::-1], []
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", None, QUICK)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lacks", ["ranges", "etags"])
def test_servers_that_cannot_continue(server, tmp_path, lacks):
    setattr(server, lacks, False)
    server.cuts = [300_000]
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", DIGEST, QUICK)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_busy_server(server, tmp_path):
    server.statuses = [503, 429]
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", DIGEST, QUICK)
    assert len(server.seen) == 3


def test_all_there_but_for_the_name(server, tmp_path):
    """Killed between the last byte and the rename: the server has nothing more to send."""
    (tmp_path / ".a.bin.part").write_bytes(CONTENT)
    etag = f'"{DIGEST[:16]}"'
    identity = {"url": "", "validator": etag, "size": len(CONTENT)}
    (tmp_path / ".a.bin.part-of").write_text(json.dumps(identity))
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", DIGEST, QUICK)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statuses": [403]}, "answers 403"),
        ({"files": {}}, "answers 404"),
        ({"kind": "text/html"}, "web page in place of the file"),
        ({"files": {"/a.bin": CONTENT[:-1] + b"x"}}, f"expected {DIGEST}"),
        ({"statuses": [503] * 9}, "503.*given up after 3 tries"),
    ],
)
def test_bad_answers(server, tmp_path, change, message):
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(EgoGenError, match=message):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", DIGEST, QUICK)
    assert list(tmp_path.iterdir()) == []


def test_bad_address(tmp_path):
    with pytest.raises(EgoGenError, match="not an address"):
        fetch("nowhere", tmp_path / "a.bin", None, QUICK)


def test_too_little_space(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fetching.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000)
    )
    with pytest.raises(EgoGenError, match=r"a.bin needs 0.0 GB, 0.0 GB are free"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", None, QUICK)
    assert not (tmp_path / "a.bin").exists()


# --- groups


def group_of(server: Server, tmp_path: Path) -> dict:
    """A folder link: an archive with an action file and an archive of frames; and a plain file."""
    frames = packed(tmp_path / "make" / "EgoGen.zip", {"EgoGen/x/frame.jpg": b"jpeg"})
    members = {"ego4d_val.json": b"{}", "EgoGen.zip": frames}
    server.files["/folder"] = packed(tmp_path / "make" / "dataset.zip", members)
    return {
        "folder": "data",
        "files": [
            {"name": "dataset.zip", "url": f"{server.address}/folder", "unpack": True},
            {"name": "weights", "file": "LDM/a.ckpt", "url": f"{server.address}/a.bin"},
        ],
    }


def files_of(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] != ".downloads")


def test_group(server, tmp_path, capsys):
    group, out = group_of(server, tmp_path), tmp_path / "out"
    everything = ["EgoGen/x/frame.jpg", "LDM/a.ckpt", "ego4d_val.json"]
    assert "fetch" in plan(group["files"], out)[0] and not out.exists()
    assert verify(group["files"], out)[0].startswith("dataset.zip: not downloaded")
    assert fetch_group(group, group["files"], out, QUICK) == []
    assert files_of(out) == everything
    requests = len(server.seen)
    assert fetch_group(group, group["files"], out, QUICK) == []
    assert len(server.seen) == requests and "finished" in plan(group["files"], out)[0]
    assert verify(group["files"], out) == []

    (out / "EgoGen/x/frame.jpg").write_bytes(b"jpeh")
    (out / "LDM/a.ckpt").write_bytes(CONTENT[::-1])
    found = verify(group["files"], out)
    assert len(found) == 2 and "not the bytes" in found[0] and DIGEST in found[1]

    (out / "EgoGen/x/frame.jpg").unlink()
    (out / "LDM/a.ckpt").unlink()
    server.files["/a.bin"] = CONTENT[::-1]
    found = fetch_group(group, group["files"], out, QUICK)
    assert len(found) == 1 and f"expected {DIGEST}" in found[0]  # not what came first
    assert (out / "EgoGen/x/frame.jpg").read_bytes() == b"jpeg"
    assert "dataset.zip: files of it are gone" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["unpack", "note", "add_members"])
def test_stopped_group_goes_on(server, tmp_path, monkeypatch, stage):
    """Stopped at every call of a stage, one after another, until nothing is left to stop."""
    group, out = group_of(server, tmp_path), tmp_path / "out"
    place = "egogen.download.group." + ("unpack" if stage == "unpack" else f"Item.{stage}")
    whole = {"unpack": unpack}.get(stage) or getattr(
        __import__("egogen.download.group", fromlist=["Item"]).Item, stage
    )
    for survives in range(10):
        calls = iter(range(100))

        def breaking(*arguments, calls=calls, survives=survives, **named):
            if next(calls) == survives % 3:
                raise KeyboardInterrupt
            return whole(*arguments, **named)

        monkeypatch.setattr(place, breaking)
        try:
            assert fetch_group(group, group["files"], out, QUICK) == []
            break
        except KeyboardInterrupt:
            continue
    assert files_of(out) == ["EgoGen/x/frame.jpg", "LDM/a.ckpt", "ego4d_val.json"]
    monkeypatch.setattr(place, whole)
    assert fetch_group(group, group["files"], out, QUICK) == [] == verify(group["files"], out)


def test_group_errors(server, tmp_path, monkeypatch):
    group, out = group_of(server, tmp_path), tmp_path / "out"
    with pytest.raises(EgoGenError, match="--only nothing: weights has dataset.zip, weights"):
        choose("weights", group["files"], ["nothing"])
    given = [{"name": "egovlp.pth", "url_from": "EGOVLP_URL"}]
    monkeypatch.delenv("EGOVLP_URL", raising=False)
    assert "set EGOVLP_URL" in fetch_group({}, given, out, QUICK)[0]
    monkeypatch.setenv("EGOVLP_URL", f"{server.address}/a.bin")
    assert fetch_group({}, given, out, QUICK) == []
    with pytest.raises(EgoGenError, match="the whole download needs .* are free"):
        fetch_group(group | {"needs_gb": 10**9}, group["files"], out, QUICK)


def test_second_download_into_a_folder_says_so(server, tmp_path):
    group, out = group_of(server, tmp_path), tmp_path / "out"
    with held(out / ".downloads" / "lock"), pytest.raises(EgoGenError, match="another process is"):
        fetch_group(group, group["files"], out, QUICK)


@pytest.mark.parametrize(
    "name", ["dataset", "gpt_curated_data", "vllm_features", "model_weights", "metric_weights"]
)
def test_scripts(name, tmp_path):
    line = ["bash", f"scripts/download_{name}.sh", str(tmp_path / "out"), "--dry-run"]
    result = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"-> {tmp_path}/out/" in result.stdout and "https://" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_cut_short_is_not_finished(server, tmp_path):
    """Of an archive and by itself; neither is overwritten without being asked."""
    group, out = group_of(server, tmp_path), tmp_path / "out"
    assert fetch_group(group, group["files"], out, QUICK) == []
    for name in ("EgoGen/x/frame.jpg", "LDM/a.ckpt"):
        path = out / name
        whole = path.read_bytes()
        path.write_bytes(whole[:2])
        assert sum("fetch" in line for line in plan(group["files"], out)) == 1
        (found,) = fetch_group(group, group["files"], out, QUICK)
        assert str(path) in found and "remove it" in found and path.read_bytes() == whole[:2]
        path.unlink()
        assert fetch_group(group, group["files"], out, QUICK) == []
        assert path.read_bytes() == whole


def test_a_weak_etag_names_no_bytes(server, tmp_path):
    """Such a file may have changed: what broke off begins again."""

    class Weak(Handler):
        def send_header(self, name, value):
            super().send_header(name, f"W/{value}" if name == "ETag" else value)

    server.RequestHandlerClass, server.cuts = Weak, [1000]
    assert fetch(f"{server.address}/a.bin", tmp_path / "a.bin", DIGEST, QUICK) == DIGEST
    assert [asked for _, asked in server.seen] == [None, None]


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "HF_MIRROR"])
def test_a_mirror_of_the_hub(tmp_path, monkeypatch, name):
    for variable in ("HF_ENDPOINT", "HF_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    hub = Item({"name": "a", "url": "https://huggingface.co/x/resolve/a"}, tmp_path)
    other = Item({"name": "b", "url": "https://example.org/b"}, tmp_path)
    assert hub.url == "https://huggingface.co/x/resolve/a"
    monkeypatch.setenv(name, "https://mirror.org/hub/")
    assert hub.url == "https://mirror.org/hub/x/resolve/a" and other.url == other.entry["url"]

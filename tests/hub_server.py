"""A server on this machine that speaks the hub's interface, and serves plain files, with faults.

Information and lists of files (in pages), `/resolve/` with the headers of the hub, large files by a
redirect to another address, ranges; on demand it drops connections, refuses, lies or is busy.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_writing import Writing, commit_of

# Kept by git LFS: sha256, a redirect.
LARGE = (".zip", ".pth", ".ckpt", ".bin", ".z01", ".z02", ".safetensors")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        # "datasets/OWNER/NAME" or "OWNER/NAME" -> files; "" has what is served as plain files
        self.repos: dict[str, dict[str, bytes]] = {"": {}}
        self.lies: dict[str, bytes] = {}  # name -> what comes in its place
        self.token = ""  # needed for everything of a repository
        self.statuses: dict[str, list[int]] = {}  # part of a path -> answers that come first
        self.cuts: dict[str, list[int]] = {}  # part of a path -> bytes before it breaks off
        self.reset = False  # in the way of a router that forgot the connection
        self.headers: dict[str, str] = {}  # that plain files have besides, or in place of others
        self.page = 1000
        # What is pushed, see hub_writing.
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.read_only = False  # for the token
        self.stored: dict[str, bytes] = {}  # large files by their sha256
        self.commits = 0
        self.card_errors: list[str] = []
        self.hang_ups: dict[str, int] = {}  # part of a path -> connections that break off there
        self.seen: list[tuple[str, str, str | None, str | None]] = []  # method, path, range, token

    def handle_error(self, *_) -> None:
        """A client that hangs up is what is tested here."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """Of a branch or of what was committed; None for others."""
        known = {"main": self.repos[repo]}
        known |= {name: files for (of, name), files in self.branches.items() if of == repo}
        commits = {commit_of(files): files for files in known.values()}
        return (known | commits).get(revision)

    def asked(self, part: str, method: str = "GET") -> list[str | None]:
        """The ranges of all requests for a path that holds `part`."""
        return [asked for how, path, asked, _ in self.seen if part in path and how == method]


class Handler(Writing, BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        server, path = self.server, unquote(urlsplit(self.path).path).lstrip("/")
        token = self.headers.get("Authorization")
        server.seen.append((self.command, path, self.headers.get("Range"), token))
        for part, statuses in server.statuses.items():
            if part in path and statuses:
                return self.say(statuses.pop(0), b"", {"Retry-After": "0"})
        if path.startswith("cdn/"):
            return self.cdn(path)
        repo = next((name for name in server.repos if name and f"{name}/" in f"{path}/"), None)
        if repo is None:
            return self.plain(path)
        if server.token and token != f"Bearer {server.token}":
            return self.say(401, b"", {"X-Error-Message": "Invalid username or password."})
        if repo in server.private and not token:
            return self.say(401, b"", {"X-Error-Code": "RepoNotFound"})
        what = next((x for x in ("resolve", "tree", "revision") if f"/{x}/" in path), "")
        raw = urlsplit(self.path).path  # a branch may have a slash, which comes quoted
        revision, _, name = map(unquote, raw.partition(f"{repo}/{what}/")[2].partition("/"))
        if (files := server.files(repo, revision if what else "main")) is None:
            return self.say(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("api/"):
            return self.api(repo, files, path)
        if name not in files:
            return self.say(404, b"", {"X-Error-Code": "EntryNotFound"})
        self.resolve(name, files[name], commit_of(files))

    def api(self, repo: str, files: dict[str, bytes], path: str) -> None:
        if "/tree/" not in path:
            siblings = [{"rfilename": name} for name in files]
            name = "/".join(repo.split("/")[-2:])
            info = {"id": name, "sha": commit_of(files), "siblings": siblings}
            info["private"] = repo in self.server.private
            return self.say(200, json.dumps(info).encode())
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        rows = []
        for name, content in [*files.items()][start : start + self.server.page]:
            row = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
            if name.endswith(LARGE):
                row["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            rows.append(row)
        rows.append({"type": "directory", "path": "folder", "oid": "0" * 40, "size": 0})
        headers = {}
        if start + self.server.page < len(files):
            following = (
                f"{self.server.address}/{path}?recursive=true&cursor={start + self.server.page}"
            )
            headers["Link"] = f'<{following}>; rel="next"'
        self.say(200, json.dumps(rows).encode(), headers)

    def resolve(self, name: str, content: bytes, commit: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(content)}"'}
        if not name.endswith(LARGE):
            return self.send(self.server.lies.get(name, content), headers)
        elsewhere = f"http://localhost:{self.server.server_port}"  # another host for a client
        headers |= {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        self.say(
            302, b"", headers | {"Location": f"{elsewhere}/cdn/{sha256(content)}/{quote(name)}"}
        )

    def cdn(self, path: str) -> None:
        _, digest, name = path.split("/", 2)
        every = [*self.server.repos.values(), *self.server.branches.values()]
        contents = [c for files in every for c in files.values()]
        content = next(content for content in contents if sha256(content) == digest)
        self.send(self.server.lies.get(name, content), {"ETag": f'"{digest[:32]}"'})

    def plain(self, name: str) -> None:
        files = self.server.repos[""]
        if name not in files:
            return self.say(404, b"", {"X-Error-Code": "RepoNotFound"})
        self.send(files[name], {"ETag": f'"{sha256(files[name])[:16]}"'} | self.server.headers)

    def send(self, content: bytes, headers: dict[str, str]) -> None:
        """With ranges, unless the client asks for those of another file."""
        asked, same = self.headers.get("Range"), self.headers.get("If-Range")
        start, status = 0, 200
        if asked and same in (None, headers.get("ETag")):
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.say(status, content[start:], headers)

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for part, cuts in self.server.cuts.items():
            if part in self.path and cuts and status < 300:
                body, self.close_connection = body[: cuts.pop(0)], True
        self.wfile.write(body)
        if self.close_connection and self.server.reset:
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", True, 0)
            )
            os.close(self.connection.detach())


@contextmanager
def hub_server() -> Iterator[HubServer]:
    with HubServer() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield running
        finally:  # also where the command ends the process: its thread would ask a closed socket
            running.shutdown()

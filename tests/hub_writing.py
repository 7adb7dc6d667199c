"""What the server of `hub_server` answers when something is pushed: repositories, branches, files.

Large files come first, each to an address of its own, and stay when the push breaks off; the rest
comes with the commit. Tokens: `writers` may write where they are set, others get 401 or 403.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import unquote

LARGE = (".safetensors", ".bin", ".zip", ".pth", ".ckpt", ".jpg", ".png")


class Writing:
    """Mixed into the handler of requests; `self.server` has the state."""

    server: Any
    headers: Any
    path: str

    def do_POST(self) -> None:
        self.write_request()

    def do_PUT(self) -> None:
        self.write_request()

    def write_request(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(size)
        server, path = self.server, self.path.partition("?")[0].lstrip("/")
        token = self.headers.get("Authorization")
        server.seen.append((self.command, path, None, token))
        for part, statuses in server.statuses.items():
            if part in path and statuses:
                return self.say(statuses.pop(0), b"", {"Retry-After": "0"})
        for part in server.hang_ups:
            if part in path and server.hang_ups[part]:
                server.hang_ups[part] -= 1
                self.close_connection = True
                return None
        if path.startswith("lfs/"):
            if hashlib.sha256(body).hexdigest() != path.removeprefix("lfs/"):
                return self.say(400, b"")
            server.stored[path.removeprefix("lfs/")] = body
            return self.say(200, b"")
        if path == "api/validate-yaml":
            return self.written(path, None)
        if server.token and token != f"Bearer {server.token}":
            return self.say(401, b"", {"X-Error-Message": "Invalid username or password."})
        if server.read_only and path != "api/repos/create":
            return self.say(403, b"", {"X-Error-Message": "You don't have the rights."})
        return self.written(path, json.loads(body) if b"\n" not in body.strip() else body)

    def written(self, path: str, given: Any) -> None:
        if path == "api/validate-yaml":
            errors = [{"message": text} for text in self.server.card_errors]
            return self.answer_json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if path == "api/repos/create":
            return self.create(given)
        if path.endswith("/info/lfs/objects/batch"):
            return self.answer_json({"objects": [self.place_of(one) for one in given["objects"]]})
        kind, _, rest = path.removeprefix("api/").partition("/")
        owner, name, what, revision = rest.split("/", 3)
        revision = unquote(revision)
        repo = ("" if kind == "models" else f"{kind}/") + f"{owner}/{name}"
        if repo not in self.server.repos:
            return self.say(404, b"", {"X-Error-Code": "RepoNotFound"})
        if what == "branch":
            if (repo, revision) in self.server.branches:
                return self.say(409, b"")
            self.server.branches[repo, revision] = dict(self.server.repos[repo])
            return self.say(200, b"")
        files = self.server.files(repo, revision)
        if files is None:
            return self.say(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if what == "preupload":
            return self.answer_json({"files": [mode(one, files) for one in given["files"]]})
        return self.commit(repo, files, given)

    def create(self, given: dict) -> None:
        kind = given.get("type") or "model"
        name = f"{given['organization']}/{given['name']}"
        repo = ("" if kind == "model" else f"{kind}s/") + name
        url = {"url": f"{self.server.address}/{repo}", "name": name}
        if repo in self.server.repos:
            return self.answer_json(url, 409)
        if self.server.read_only:
            return self.say(403, b"", {"X-Error-Message": "You don't have the rights."})
        if kind == "space" and given.get("sdk") != "gradio":
            return self.say(400, b"")
        self.server.repos[repo] = {}
        if given.get("visibility") == "private" or given.get("private"):
            self.server.private.add(repo)
        return self.answer_json(url)

    def place_of(self, asked: dict) -> dict:
        place = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in self.server.stored:
            href = f"{self.server.address}/lfs/{asked['oid']}"
            place["actions"] = {"upload": {"href": href}}
        return place

    def commit(self, repo: str, files: dict[str, bytes], body: bytes) -> None:
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        self.server.commits += 1
        url = f"{self.server.address}/{repo}/commit/{commit_of(files)}"
        self.answer_json({"commitUrl": url, "commitOid": commit_of(files), "success": True})

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.say(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def commit_of(files: dict[str, bytes]) -> str:
    """A name for what a repository holds."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha1(files[name]).digest())
    return digest.hexdigest()


def mode(asked: dict, files: dict[str, bytes]) -> dict:
    """How a file is to come, and what is there by its name."""
    name, content = asked["path"], files.get(asked["path"])
    large = name.endswith(LARGE)
    row = {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    if content is not None:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        row["oid"] = hashlib.sha256(content).hexdigest() if large else git
    return row

"""Downloads from plain addresses (Dropbox, weights of others), and archives that they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_commands import errors, local_hub, run  # noqa: F401
from hub_server import sha256
from zip_archives import packed

CONTENT = bytes(range(256)) * 4096  # 1 MiB
BROKEN = [700_000, *[0] * 9]  # bytes that come before the client gives up


@pytest.fixture
def command(server, tmp_path, capfd):
    """Runs the command on a list of this file alone -> exit code, everything printed."""
    server.repos[""]["a.ckpt"] = CONTENT

    def start(more: str = "", **fields: object) -> tuple[int, str]:
        entry = {"name": "a", "url": f"{server.address}/a.ckpt", "file": "LDM/a.ckpt"} | fields
        (tmp_path / "list.json").write_text(
            json.dumps({"weights": {"folder": "x", "files": [entry]}})
        )
        words = f"weights {tmp_path}/out --source dropbox --manifest {tmp_path}/list.json {more}"
        return run(words, capfd)

    return start


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "out/LDM/a.ckpt"


@pytest.mark.parametrize("digest", ["", sha256(CONTENT), sha256(CONTENT)[:8]])
def test_a_file_comes_once(command, target, server, digest):
    assert command(sha256=digest)[0] == 0 and target.read_bytes() == CONTENT
    server.seen.clear()
    assert command(sha256=digest)[0] == 0 and not server.seen
    assert command("--verify")[0] == 0
    assert [path.name for path in target.parent.iterdir()] == ["a.ckpt"]


def test_a_connection_that_is_reset_is_opened_again(command, target, server):
    server.reset, server.cuts["a.ckpt"] = True, [400_000, 0, 300_000]
    assert command()[0] == 0 and target.read_bytes() == CONTENT
    assert len(server.asked("a.ckpt")) == 4


def test_a_later_call_goes_on(command, target, server):
    server.cuts["a.ckpt"] = list(BROKEN)
    code, text = command()
    assert code == 1 and "run it again to go on" in errors(text)[0] and not target.exists()
    server.cuts.clear(), server.seen.clear()
    assert command()[0] == 0 and target.read_bytes() == CONTENT
    assert int(server.asked("a.ckpt")[0].removeprefix("bytes=").rstrip("-")) > 600_000


@pytest.mark.parametrize(
    "headers", [{}, {"ETag": 'W/"a"'}, {"ETag": ""}, {"ETag": "", "Last-Modified": "today"}]
)
def test_a_file_that_changed_in_between_begins_again(command, target, server, headers):
    """So does one of which the server does not say whether it did."""
    server.headers, server.cuts["a.ckpt"] = headers, list(BROKEN)
    command()
    server.repos[""]["a.ckpt"] = CONTENT[::-1]
    server.headers = headers | ({"Last-Modified": "now"} if "Last-Modified" in headers else {})
    server.cuts.clear(), server.seen.clear()
    assert command()[0] == 0 and target.read_bytes() == CONTENT[::-1]
    assert server.asked("a.ckpt") == [None]


def test_a_server_that_is_busy_or_knows_no_head(command, target, server):
    server.statuses["a.ckpt"] = [503, 429, 405, 503, 500]
    assert command()[0] == 0 and target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"statuses": {"a.ckpt": [403] * 9}}, "answers 403"),
        ({"repos": {"": {}}}, "answers 404"),
        (
            {"headers": {"Content-Type": "text/html; charset=utf-8"}},
            "web page in place of the file",
        ),
        ({"repos": {"": {"a.ckpt": CONTENT[:-1] + b"x"}}}, f"expected {sha256(CONTENT)}"),
        ({"repos": {"": {"a.ckpt": b""}}}, f"expected {sha256(CONTENT)}"),
    ],
)
def test_bad_answers(command, target, server, change, said):
    for name, value in change.items():
        setattr(server, name, value)
    digest = "" if "page" in said else sha256(CONTENT)
    code, text = command(sha256=digest)
    assert code == 1 and len(errors(text)) == 1 and said in text and not target.exists()


def test_nobody_is_there(command, tmp_path):
    code, text = command(url="http://127.0.0.1:9/a.ckpt")
    assert code == 1 and "no connection" in errors(text)[0]


def test_what_came_first_is_expected_from_then_on(command, target, server):
    command()
    target.unlink()
    server.repos[""]["a.ckpt"] = CONTENT[::-1]
    code, text = command()
    assert code == 1 and f"expected {sha256(CONTENT)}" in errors(text)[0] and not target.exists()


def test_a_file_that_was_cut_short_is_not_overwritten(command, target):
    command()
    target.write_bytes(CONTENT[:2])
    code, text = command()
    assert code == 1 and "remove it" in text and target.read_bytes() == CONTENT[:2]
    target.unlink()
    assert command()[0] == 0 and target.read_bytes() == CONTENT


def test_archives_within_an_archive(command, server, tmp_path):
    """As a shared folder comes: with an action file, and frames that are packed in turn."""
    frames = packed(tmp_path / "make/EgoGen.zip", {"EgoGen/x/frame.jpg": b"jpeg"})
    members = {"ego4d_val.json": b"{}", "EgoGen.zip": frames}
    server.repos[""]["folder"] = packed(tmp_path / "make/all.zip", members)
    fields = {"url": f"{server.address}/folder", "file": "all.zip", "unpack": True, "gb": 0}
    assert command(**fields)[0] == 0
    server.seen.clear()
    assert command(**fields)[0] == 0 and not server.seen
    found = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and ".downloads" not in str(p)]
    assert sorted(p.name for p in found) == ["ego4d_val.json", "frame.jpg"]
    code, text = command(**fields | {"gb": 10**6, "name": "b"})
    assert code == 2 and "the whole download needs 1000000.0 GB" in text

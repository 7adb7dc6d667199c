"""The download command in this process, and a hub that it takes for the real one."""

from __future__ import annotations

import pytest
from hub_server import hub_server

from egogen.download import __main__ as download
from egogen.download.hub import snapshot
from egogen.errors import run_command


@pytest.fixture(name="server")
def local_hub(monkeypatch, tmp_path):
    """The hub, as far as this process knows it."""
    with hub_server() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
        monkeypatch.setattr("time.sleep", lambda _: None)
        monkeypatch.setattr("logging.raiseExceptions", False)  # the stderr of an earlier test
        yield running


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The same server for pushing and for names of models, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # no storage for it
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    snapshot.cache_clear()
    yield server
    snapshot.cache_clear()


def run(words: str | list[str], capfd, main=download.main) -> tuple[int, str]:
    """-> exit code of the command, everything printed."""
    with pytest.raises(SystemExit) as stopped:
        run_command(main, words.split() if isinstance(words, str) else words)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    return int(stopped.value.code or 0), printed.out + printed.err


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]

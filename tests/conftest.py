"""Fixtures that several files of tests share."""

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from last_run import pytest_configure  # noqa: F401 (the table of the long tests' last runs)


@pytest.fixture(scope="module", autouse=True)
def _no_server_is_left() -> Iterator[None]:
    """A server that is not shut down turns on its closed socket for the rest of the tests."""
    yield
    for thread in threading.enumerate():
        if "serve_forever" in thread.name:
            thread.join(timeout=10)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """A small pipeline, shared by tests that leave it as it was."""
    from small_pipeline import small_pipe

    return small_pipe(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def usual(pipe):
    """Its frame of the usual input."""
    from small_pipeline import one_input

    return pipe(**one_input()).images


@pytest.fixture
def own(tmp_path):
    """A pipeline that a test may change."""
    from small_pipeline import small_pipe

    return small_pipe(tmp_path)


@pytest.fixture(scope="module")
def browser():
    """A real browser; each test has windows of its own in it."""
    from web_page import chromium

    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def browser_page(browser):
    """`web_page.open_page` in it."""
    from web_page import open_page

    return partial(open_page, browser)


@pytest.fixture
def slurm_calls(tmp_path, monkeypatch) -> Callable[[], str]:
    """In a job of Slurm with the number 77 -> what `scontrol` was called with so far."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tools}/called\n')
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    return lambda: (tools / "called").read_text() if (tools / "called").exists() else ""

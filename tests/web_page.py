"""Pages in a real browser that a test clicks through, by playwright and the system's Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from browser import NAMES

CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")


@contextmanager
def chromium() -> Iterator:
    """The browser, with a camera that films a test card. Without one the test is skipped, except in
    CI (env `CI`).
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        message = "no chromium on this machine; install it with: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", *CAMERA]
        )
        yield running
        running.close()


@contextmanager
def open_page(browser, width: int = 1200, height: int = 900, scheme: str = "light") -> Iterator:
    """An empty page of a visitor who was never here. At its end no script may have failed.

    `page.asked` are the addresses that were asked for, without those inside the page.
    """
    size = {"width": width, "height": height}
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(90_000)  # milliseconds; other work may take the processor
    page = context.new_page()
    page.failed, page.asked = [], []
    page.on("pageerror", lambda error: page.failed.append(str(error)))
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith(("data:", "blob:")) else page.asked.append(asked.url)
        ),
    )
    try:
        yield page
        assert page.failed == []
    finally:
        context.close()

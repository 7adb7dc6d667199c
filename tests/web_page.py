"""A page in a real browser that a test clicks through, by playwright and the system's Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from browser import NAMES


@contextmanager
def browser_page(width: int = 1200, height: int = 900, scheme: str = "light") -> Iterator:
    """An empty page. At its end no script may have failed, and nothing come from another host.

    `page.asked` are the addresses that were asked for, without those inside the page. Without a
    browser the test is skipped, except in CI (env `CI`).
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        message = "no chromium on this machine; install it with: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        size = {"width": width, "height": height}
        page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
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
            browser.close()

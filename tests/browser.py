"""A real browser for pages that are looked at."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def screenshot(page: Path, folder: Path, width: int, height: int, *flags: str) -> Image.Image:
    """Picture of a page, RGB. Without a browser the test is skipped, except in CI (env `CI`)."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        message = "no chromium on this machine; install it with: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    out = folder / f"screenshot-{width}.png"
    command = [browser, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},{height}", f"--screenshot={out}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(out) as image:
        return image.convert("RGB")

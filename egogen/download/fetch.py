"""One file over HTTP: resumed where it broke off, tried again with back-off, whole or not there."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from egogen.atomic import read_json, write_json
from egogen.errors import EgoGenError
from egogen.jobs import Progress

BLOCK = 1 << 20
TIMEOUT_SECONDS = 60
WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}
DROPPED = (OSError, http.client.HTTPException)  # URLError and timeouts are OSErrors


@dataclass(frozen=True)
class Patience:
    """How often a download that makes no progress is tried again, and how long it waits."""

    tries: int = 8
    first_wait: float = 1.0
    longest_wait: float = 120.0

    def wait(self, failures: int, asked: str | None = None) -> None:
        seconds = min(self.first_wait * 2 ** (failures - 1), self.longest_wait)
        if asked is not None and asked.isdigit():  # Retry-After
            seconds = max(seconds, min(float(asked), self.longest_wait))
        time.sleep(seconds)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise EgoGenError when the file system of `folder` has less than `needed` bytes left."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise EgoGenError(
            f"{folder}: {what} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )


def fetch(url: str, target: Path, digest: str | None = None, patience: Patience | None = None):
    """Download `url` to `target` -> sha256 of the file (hex).

    The part that has arrived is kept as `.NAME.part` and continued, also by a later call, as long
    as the server says that the file is the same one (ETag or Last-Modified); otherwise the download
    begins again. `digest`: the sha256 it must have, or the first digits of it.

    Raises EgoGenError for an address that does not work, a web page in place of a file, too little
    space, wrong bytes (which are removed), or when `patience` is at its end (the part is kept).
    """
    patience = patience or Patience()
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before, asked = part.stat().st_size if part.exists() else 0, None
        try:
            _receive(url, part, target.name)
            break
        except urllib.error.HTTPError as error:
            asked = error.headers.get("Retry-After")
            if error.code not in WORTH_RETRYING:
                raise EgoGenError(
                    f"{target.name}: {url} answers {error.code} {error.reason}"
                ) from None
            reason = f"{error.code} {error.reason}"
        except DROPPED as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # the disk, not the network
            reason = str(error) or type(error).__name__
        grown = part.exists() and part.stat().st_size > before
        failures = 1 if grown else failures + 1
        if failures >= patience.tries:
            raise EgoGenError(
                f"{target.name}: {url}: {reason}; given up after {failures} tries without "
                "progress, the same command continues"
            )
        print(f"{target.name}: {reason}, trying again", flush=True)
        patience.wait(failures, asked)
    found = sha256(part)
    if digest is not None and not found.startswith(digest):
        _forget(part)
        raise EgoGenError(f"{target.name}: {url} gave sha256 {found}, expected {digest}")
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    _forget(part)
    return found


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _identity_file(part).unlink(missing_ok=True)


def _identity_file(part: Path) -> Path:
    return part.with_suffix(".part-of")


def _receive(url: str, part: Path, name: str) -> None:
    """Append what is missing of `url` to `part`; raise when the connection ends too early."""
    have = part.stat().st_size if part.exists() else 0
    identity = read_json(_identity_file(part)) if have and _identity_file(part).exists() else {}
    headers = {"User-Agent": "lego-egogen", "Accept-Encoding": "identity"}
    if have and identity.get("validator"):
        headers |= {"Range": f"bytes={have}-", "If-Range": identity["validator"]}
    try:
        answer = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and have == identity.get("size"):
            return  # everything was there
        if error.code == 416:
            _forget(part)  # longer than the file is: another one, from the beginning
            raise ConnectionError("the part did not fit the file") from None
        raise
    except ValueError:
        raise EgoGenError(f"{name}: {url!r} is not an address") from None
    with answer:
        if answer.headers.get_content_type() == "text/html" and not name.endswith(".html"):
            raise EgoGenError(
                f"{name}: {url} gives a web page in place of the file: open it by hand"
            )
        going_on = answer.status == 206 and _begins_at(answer, have)
        have = have if going_on else 0
        length = answer.headers.get("Content-Length")
        size = have + int(length) if length is not None else None
        if size is not None:
            check_space(part.parent, size - have, name)
        if not going_on:
            validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            strong = validator if validator and not validator.startswith("W/") else None
            part.unlink(missing_ok=True)
            write_json(_identity_file(part), {"url": url, "validator": strong, "size": size})
        _copy(answer, part, name, have, size)


def _begins_at(answer, have: int) -> bool:
    return answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _copy(answer, part: Path, name: str, have: int, size: int | None) -> None:
    megabyte = 1_000_000
    with (
        open(part, "ab") as file,
        Progress((size or have) // megabyte, name, "MB", have // megabyte) as bar,
    ):
        while block := answer.read(BLOCK):
            file.write(block)
            before, have = have, have + len(block)
            bar.update(have // megabyte - before // megabyte)
    if size is not None and have != size:
        raise ConnectionError(f"connection closed at {have} of {size} bytes")

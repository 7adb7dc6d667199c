"""One file over HTTP by the hub's own client, whole or not there.

The client brings retries, redirects, tokens, proxies and HF_HUB_OFFLINE. It forgets half a file
when it is killed, so what has arrived is kept here, and continued by the next call.
"""

import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from egogen import EgoGenError, read_object, write_json

T = TypeVar("T")
BLOCK = 1 << 20
BUSY = {429, 500, 502, 503, 504}
WAITS = (1, 4, 16, 60)  # seconds before a busy server is asked again
CLOSED = "expected one that is there and open: HF_TOKEN or `hf auth login`, its terms accepted"


class NoConnection(EgoGenError):
    """Nothing else of the same server can be had either."""


def asked(what: str, call: Callable[[], T]) -> T:
    """`call()`, again after a while where a busy server refused it or reset the connection.

    The client's errors come as EgoGenError: `what`, the answer, and what to do about it.
    """
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    waits = [*WAITS]
    while True:
        try:
            return call()
        except OfflineModeIsEnabled:
            raise NoConnection(f"{what}: HF_HUB_OFFLINE is set, expected it unset") from None
        except (HTTPError, OSError, RuntimeError) as error:  # the last one of uploads
            if getattr(error, "errno", None) is not None:
                raise  # the disk, not the network
            answer, said = getattr(error, "response", None), " ".join(str(error).split())
            reset = type(error).__name__ == "ReadError"  # the client takes it for final
            if answer is None and not (reset and waits):
                line = f"{what}: no connection ({said}); run it again to go on"
                raise NoConnection(line) from None
            if answer is not None and (answer.status_code not in BUSY or not waits):
                closed = answer.status_code in (401, 403, 404)
                advice = CLOSED if closed else "run it again to go on"
                raise EgoGenError(f"{what} answers {answer.status_code}; {advice}") from None
        time.sleep(waits.pop(0))


def digest_of(path: Path, like: str = "") -> str:
    """Digest of the kind of `like`: CRC-32 (up to 10 digits), git's sha1 (40) or sha256, hex."""
    crc, digest = like.isdigit() and len(like) <= 10, hashlib.sha256()
    if len(like) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        if not crc:
            return hashlib.file_digest(file, lambda: digest).hexdigest()
        found = 0
        while block := file.read(BLOCK):
            found = zlib.crc32(block, found)
    return str(found)


def check_space(folder: Path, needed: float, what: str) -> None:
    """Raise EgoGenError when the file system of `folder` has less than `needed` bytes left."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if (free := shutil.disk_usage(existing).free) < needed:
        room = f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise EgoGenError(f"{folder}: {what} needs {room}")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def fetch(url: str, target: Path, size: int, digest: str, hub: bool) -> str:
    """Download `url`, of `size` bytes (0: unknown), to `target` -> its digest.

    It must begin with `digest`. Unless that is whole, the server has to say that what has arrived
    is of the same file (ETag, Last-Modified); else it begins again. Raises EgoGenError for a web
    page in place of a file, too little space, and wrong bytes, which are removed.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, http_backoff

    headers = {"Accept-Encoding": "identity", **(build_hf_headers() if hub else {})}
    part, same = part_of(target), digest
    identity = part.with_suffix(".part-of")
    if len(digest) < 40:
        head = http_backoff("HEAD", url, headers=headers, timeout=60, retry_on_exceptions=())
        answer = head.headers if head.status_code < 400 else {}  # some know no HEAD
        if "text/html" in answer.get("Content-Type", ""):
            raise EgoGenError(f"{url} gives a web page in place of the file: open it by hand")
        size = int(answer.get("Content-Length", 0))
        same = headers["If-Range"] = answer.get("ETag") or answer.get("Last-Modified") or "W/"
    target.parent.mkdir(parents=True, exist_ok=True)
    noted = read_object(identity, needed=False).get("validator")
    if noted != same or same.startswith("W/") or size_of(part) > size > 0:
        part.unlink(missing_ok=True)
    check_space(part.parent, size - size_of(part), target.name)
    write_json(identity, {"validator": same})
    with open(part, "ab") as file:
        if file.tell() != size or not size:
            http_get(url, file, resume_size=file.tell(), headers=headers)
        os.fsync(file.fileno())
    if (found := digest_of(part, digest)).startswith(digest):
        os.replace(part, target)
    part.unlink(missing_ok=True)
    identity.unlink()
    if not found.startswith(digest):
        raise EgoGenError(f"{url} gave other bytes (digest {found}), expected {digest}")
    return found

"""Names of models at the hub, OWNER/NAME or OWNER/NAME@REVISION: they go wherever a path does."""

import os
import re
from functools import cache, partial

from egogen.download.fetch import asked
from egogen.errors import EgoGenError

PART = r"\w(?:[\w.-]*\w)?"  # what ends as a file's name does is a path that is not there
NAME = re.compile(
    rf"(?!.*(?:--|\.\.|\.(?:ckpt|safetensors|pth?|bin|ya?ml|json)$))({PART}/{PART})(?:@([\w./-]+))?",
    re.ASCII,
)
# What repositories have besides, and nothing here reads.
UNREAD = ["*.gguf", "*.onnx*", "*.msgpack", "*.h5", "*.ot", "original/*", "checkpoint-*/*"]


def split_name(given: str) -> tuple[str, str | None]:
    """OWNER/NAME and REVISION, if any, of a hub name. Raises EgoGenError for another text."""
    if not (found := NAME.fullmatch(given)):
        raise EgoGenError(f"{given}: expected a hub name, OWNER/NAME or OWNER/NAME@REVISION")
    return found[1], found[2]


def is_hub_name(given: str | os.PathLike) -> bool:
    """Whether it may be a name at the hub; a path that is there is none."""
    return bool(NAME.fullmatch(str(given))) and not os.path.exists(given)


def local_path(given: str | os.PathLike) -> str:
    """`given` itself; of a hub name the folder in the hub's cache, downloaded if need be.

    Raises EgoGenError for a name that the hub does not know or give.
    """
    return snapshot(str(given)) if is_hub_name(given) else str(given)


@cache  # the hub is asked once
def snapshot(given: str, kind: str = "model", out: str | os.PathLike | None = None) -> str:
    """The folder of a repository's files: in the hub's cache, or `out`. Raises EgoGenError."""
    from huggingface_hub import snapshot_download

    name, revision = split_name(given)
    how = {"repo_type": kind, "revision": revision, "local_dir": out, "ignore_patterns": UNREAD}
    hub = os.environ.get("HF_ENDPOINT")
    call = partial(snapshot_download, name, **how, endpoint=hub)
    return asked(f"{given}: no path here; the repository at {hub or 'the hub'}", call)

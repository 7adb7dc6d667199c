"""Ways to damage the files of the world of bad_input_world, and what a case is."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], object]  # called with the world's folder


@dataclass(frozen=True)
class Case:
    """`entry` of bad_input_world.ENTRIES with `more` behind it, after `damage`, says all of `said`.

    Code 2: refused. Code 1: the rest was done, and this reported. Code 0: no error at all.
    """

    entry: str
    what: str
    damage: Damage
    said: tuple[str, ...]
    code: int = 2
    more: str = ""
    slow: bool = False  # left out by default: `-m slow`

    def __str__(self) -> str:
        return f"{self.entry}: {self.what}"


def at(root: Path, path: str) -> Path:
    """`root / path`; with a star in it the first that fits."""
    return min(root.glob(path)) if "*" in path else root / path


def put(path: str, data: bytes | str) -> Damage:
    """These bytes in the place of a file."""
    return lambda root: at(root, path).write_bytes(data.encode() if isinstance(data, str) else data)


def cut(path: str, share: float = 0.5) -> Damage:
    def damage(root: Path) -> None:
        whole = at(root, path).read_bytes()
        at(root, path).write_bytes(whole[: int(len(whole) * share)])

    return damage


def gone(path: str) -> Damage:
    return lambda root: at(root, path).unlink()


def folder_instead(path: str) -> Damage:
    def damage(root: Path) -> None:
        file = at(root, path)
        file.unlink()
        file.mkdir()

    return damage


def edited(path: str, change: Callable[[object], object]) -> Damage:
    """A JSON file after `change(content)`: what it returns, else what it left of the content."""

    def damage(root: Path) -> None:
        content = json.loads(at(root, path).read_text())
        changed = change(content)
        at(root, path).write_text(json.dumps(content if changed is None else changed))

    return damage


def replaced(path: str, old: str, new: str) -> Damage:
    def damage(root: Path) -> None:
        text = at(root, path).read_text()
        assert old in text, (path, old)
        at(root, path).write_text(text.replace(old, new, 1))

    return damage


def marked(root: Path) -> None:
    """Every JSON file of the data as Notepad saves it."""
    for path in [*root.glob("*.json"), *root.glob("*/vllm_*.json")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def halved(root: Path) -> None:
    """Every text of the data that is said or asked ends in half of an emoji."""
    for path in [*root.glob("*.json"), *root.glob("*/vllm_*.json")]:
        text = path.read_text()
        for name in ("action", "llava_forecast_finetune", "description", "value"):
            text = re.sub(rf'("{name}": "[^"]*)"', r'\1 \\ud83d"', text)
        path.write_text(text)


def linked(root: Path) -> None:
    """Every file of the data as a link into one folder, as in the cache of a hub."""
    (root / "blobs").mkdir()
    files = [path for path in root.glob("[Eit]*/**/*.*") if path.is_file()]
    for number, path in enumerate([*files, *root.glob("*.json")]):
        path.rename(root / "blobs" / f"{number}")
        path.symlink_to(root / "blobs" / f"{number}")


def saved(path: str, make: Callable[[], object]) -> Damage:
    """An .npy of what `make` gives; objects are pickled by it."""

    def damage(root: Path) -> None:
        with open(at(root, path), "wb") as file:
            np.save(file, make(), allow_pickle=True)

    return damage


def untouched(root: Path) -> None:
    """Nothing is damaged: the command line is what is wrong."""


class Payload:
    """Whoever unpickles this has run a command."""

    def __reduce__(self):
        return os.mkdir, (os.environ["BAD_INPUT_EXECUTED"],)


def payload(path: str, inside_zip: bool = False) -> Damage:
    """A pickle that makes a folder when it is loaded, plain or as torch.save writes it."""

    def damage(root: Path) -> None:
        os.environ["BAD_INPUT_EXECUTED"] = str(root / "executed")
        if inside_zip:
            torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Payload()}, at(root, path))
        else:
            at(root, path).write_bytes(pickle.dumps(Payload()))

    return damage


def weights(path: str, change: Callable[[dict], dict]) -> Damage:
    """A .ckpt or .safetensors after `change(tensors)`."""

    def damage(root: Path) -> None:
        file = at(root, path)
        if file.suffix == ".safetensors":
            save_file(change(load_file(file)), file, metadata={"format": "pt"})
        else:
            content = torch.load(file, weights_only=False)
            torch.save({**content, "state_dict": change(content["state_dict"])}, file)

    return damage


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has this size and holds nothing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND\xaeB`\x82"


def as_gif() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "gif")
    return data.getvalue()[:30]

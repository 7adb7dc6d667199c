"""Action files: `clip -> action -> {image_0, image_1, action, <description keys>}`, as released."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egogen.atomic import read_object
from egogen.errors import EgoGenError

MOST_SIDE, MOST_ASPECT = 65_535, 100  # of a clip: generated frames are given its aspect
DESCRIPTION_KEY = "llava_forecast_finetune"  # the enriched description in the released files


@dataclass(frozen=True)
class ActionEntry:
    """One before/after pair; paths (`clip/action/frame.jpg`) are relative to the split's folder."""

    clip: str
    action_id: str
    image_0: str
    image_1: str
    texts: dict[str, str] = field(hash=False)

    @property
    def key(self) -> str:
        return f"{self.clip}/{self.action_id}"

    @property
    def label(self) -> str:
        return self.texts["action"]


def safe_relative(value: Any, where: str, root: str = "the dataset root") -> str:
    """Check that `value` is a relative POSIX path that does not leave `root` by its names.

    Links are not looked at: those in a folder were made by its owner.
    """
    names = value.split("/") if isinstance(value, str) else []
    parts = [name for name in names if name not in ("", ".")]
    if not parts:
        raise EgoGenError(f"{where}: expected a relative path, found {value!r}")
    if value.startswith("/") or ".." in parts:
        leaves = f"path {value!r} leaves {root}"
        raise EgoGenError(f"{where}: {leaves}, expected a relative path inside it")
    for part in parts:
        _file_name(part, f"{where}: path")
    return value


def inside(root: str | os.PathLike, relative: str) -> Path:
    """`root / relative`, refused when the names in it lead outside the root."""
    return Path(root) / safe_relative(relative, str(root))


def _file_name(value: str, where: str) -> None:
    """Names that every file system and archive takes; Windows reads a backslash as a slash."""
    if "\\" in value or "\0" in value or len(value.encode("utf-8", "replace")) > 255:
        expected = "at most 255 bytes without backslash and zero byte, with / between folders"
        raise EgoGenError(f"{where} {value!r} cannot name a file, expected {expected}")


def identifier(value: str, where: str) -> str:
    """Check that `value` can name a folder. Raises EgoGenError."""
    if not value or value in (".", "..") or "/" in value:
        raise EgoGenError(f"{where}: {value!r} cannot name a folder, expected no slashes in it")
    _file_name(value, f"{where}: id")
    return value


def _entry(
    path: Path, clip: str, action_id: str, fields: Any, text_keys: tuple[str, ...]
) -> ActionEntry:
    where = f"{path}: entry {clip}/{action_id}"
    identifier(clip, f"{path}: clip")
    identifier(action_id, where)
    if not isinstance(fields, dict):
        raise EgoGenError(f"{where}: expected an object, found {type(fields).__name__}")
    for name in ("image_0", "image_1", *text_keys):
        if name not in fields:
            raise EgoGenError(f"{where}: field {name!r} is missing")
    for name in text_keys:
        if (found := type(fields[name]).__name__) != "str":
            raise EgoGenError(f"{where}: field {name!r}: expected text, found {found}")
    for name in ("image_0", "image_1"):
        safe_relative(fields[name], f"{where}: field {name!r}")
    texts = {name: text for name, text in fields.items() if isinstance(text, str)}
    return ActionEntry(clip, action_id, texts.pop("image_0"), texts.pop("image_1"), texts)


def scan_actions(
    path: str | os.PathLike, text_keys: tuple[str, ...] = ("action",)
) -> tuple[list[ActionEntry], list[str]]:
    """All good entries in the file's order, and one line for every entry that is not as released.

    Raises EgoGenError when the file cannot be read at all as an action file.
    """
    path = Path(path)
    entries: list[ActionEntry] = []
    problems: list[str] = []
    for clip, actions in read_object(path, "an object of clips").items():
        if not isinstance(actions, dict):
            found = type(actions).__name__
            problems.append(f"{path}: clip {clip!r}: expected an object of actions, found {found}")
            continue
        for action_id, fields in actions.items():
            try:
                entries.append(_entry(path, clip, action_id, fields, text_keys))
            except EgoGenError as error:
                problems.append(str(error))
    return entries, problems


def read_actions(
    path: str | os.PathLike, text_keys: tuple[str, ...] = ("action",)
) -> list[ActionEntry]:
    """All entries in the file's order; the fields named in `text_keys` must be there and be text.

    Raises EgoGenError naming file, entry and field for the first thing that is not as released.
    """
    entries, problems = scan_actions(path, text_keys)
    if problems:
        raise EgoGenError(problems[0])
    if not entries:
        raise EgoGenError(f"{path}: holds no entries, expected at least one")
    return entries


def read_clip_sizes(path: str | os.PathLike) -> dict[str, tuple[int, int]]:
    """Metadata file -> {clip: (width, height)} in pixels of the original video, nothing else."""
    sizes = {}
    for clip, fields in read_object(path, "an object of clips").items():
        known = fields if isinstance(fields, dict) else {}
        size: list[Any] = [known.get("width"), known.get("height")]
        sides = [x for x in size if type(x) in (int, float) and 1 <= x <= MOST_SIDE]
        if len(sides) < 2 or max(sides) > MOST_ASPECT * min(sides):
            limits = f"up to {MOST_SIDE}, at most {MOST_ASPECT} to 1"
            expected = f"expected positive 'width' and 'height' {limits}, found {size}"
            raise EgoGenError(f"{path}: clip {clip!r}: {expected}")
        sizes[clip] = (int(sides[0]), int(sides[1]))
    return sizes


def conversation(name: str, image: str, asked: str, answer: str) -> dict[str, Any]:
    """A question and answer about a frame, in the released form of stage 1's tuning file."""
    turns = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": turns}

"""Damaged files, as data: every way to damage one is tried on every command that reads it.

To add cases, add a way to damage a file to PICTURES, ARRAYS, WHOLE_FILE, ONE_ENTRY, CHECKPOINTS,
VLLM_CONFIGS or YAML, or a command to the readers below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from bad_input_damage import (
    Case,
    Damage,
    as_gif,
    cut,
    edited,
    folder_instead,
    gone,
    payload,
    png_header,
    put,
    replaced,
    saved,
    weights,
)

# ---- pictures

CLIP = "ego4d-val-clip0"
VAL, TRAIN = "EgoGen/ego4d.fho/val", "EgoGen/ego4d.fho/train"
SOURCE = f"{VAL}/{CLIP}/0/frame_000010.jpg"
TRAIN_SOURCE = f"{TRAIN}/ego4d-train-clip0/0/frame_000010.jpg"
TRAIN_TARGET = f"{TRAIN}/ego4d-train-clip0/0/frame_000020.jpg"
GENERATED = f"run/images/{CLIP}/0/frame_000020.jpg"
TRUTH = f"EgoGen/ego4d.fho/val_gt_for_metric/{CLIP}/0/frame_000020.jpg"

PICTURES: dict[str, Callable[[str], Damage]] = {
    "cut short": lambda path: cut(path, 0.7),
    "empty": lambda path: put(path, b""),
    "huge header": lambda path: put(path, png_header(60_000, 60_000)),
    "a web page": lambda path: put(path, "<html>404 not found</html>"),
    "half a GIF": lambda path: put(path, as_gif()),
    "a folder": folder_instead,
    "missing": gone,
}
# Command -> the picture that is damaged, exit code.
PICTURE_READERS = {
    "check": (SOURCE, 1),
    "describe": (SOURCE, 1),
    "tune": (TRAIN_SOURCE, 2),
    "cache": (TRAIN_SOURCE, 2),
    "train": (TRAIN_TARGET, 2),
    "generate": (SOURCE, 1),
    "frame": ("photo.jpg", 2),
    "metrics": (GENERATED, 2),
    "score": ("mini/made/*/*/*.jpg", 2),
    "report": (GENERATED, 2),
    "copy source": (SOURCE, 2),
    "build": ("videos/kitchen/7.jpg", 1),
}

# Frames that are not there count as actions not done, and are told.
NOT_GENERATED = {("score", "missing"), ("score", "a folder")}

# ---- feature arrays

VAL_TEXT = f"text/val/{CLIP}/0/frame_000010.npy"
FEATURE = "frame_000010"
TRAIN_TEXT = "text/train/ego4d-train-clip0/0/frame_000010.npy"

ARRAYS: dict[str, tuple[Callable[[str], Damage], str]] = {
    "objects": (lambda path: saved(path, lambda: np.array([{}], dtype=object)), ""),
    "pickled payload": (payload, ""),
    "not a number": (
        lambda path: saved(path, lambda: np.full((3, 8), np.nan, np.float16)),
        "NaN",
    ),
    "infinite": (lambda path: saved(path, lambda: np.full((3, 8), np.inf, np.float16)), ""),
    "four axes": (
        lambda path: saved(path, lambda: np.zeros((1, 1, 3, 8), np.float16)),
        "(1, 1, 3, 8)",
    ),
    "batch of one": (
        lambda path: saved(path, lambda: np.zeros((1, 3, 8), np.float16)),
        "(1, 3, 8)",
    ),
    "beyond float32": (lambda path: saved(path, lambda: np.full((3, 8), 1e300)), "infinity"),
    "other width": (lambda path: saved(path, lambda: np.zeros((3, 9), np.float16)), "9"),
    "no rows": (lambda path: saved(path, lambda: np.zeros((0, 8), np.float16)), "(0, 8)"),
    "texts": (lambda path: saved(path, lambda: np.array([["a"] * 8] * 3)), ""),
    "complex": (lambda path: saved(path, lambda: np.zeros((3, 8), complex)), "complex"),
    "cut short": (lambda path: cut(path, 0.7), ""),
    "empty": (lambda path: put(path, b""), ""),
    "missing": (gone, "no such feature"),
}
ARRAY_READERS = {
    "check": (VAL_TEXT, 1),
    "generate": (VAL_TEXT, 1),
    "train": (TRAIN_TEXT, 2),
    "compact": (VAL_TEXT, 1),
}

# ---- action files


def field(name: str, value: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content[CLIP]["0"][name] = value

    return change


def without(name: str) -> Callable[[dict], None]:
    return lambda content: content[CLIP]["0"].pop(name) and None


def clip_called(name: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content[name] = content.pop(CLIP)

    return change


def action_called(name: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content[CLIP][name] = content[CLIP].pop("0")

    return change


VAL_ACTIONS = "ego4d_val.json"
WHOLE_FILE: dict[str, tuple[Damage, str]] = {
    "no JSON": (put(VAL_ACTIONS, "{"), "not"),
    "empty file": (put(VAL_ACTIONS, ""), "not"),
    "not UTF-8": (put(VAL_ACTIONS, b'{"\xff\xfe": {}}'), ""),
    "a list": (edited(VAL_ACTIONS, lambda _: []), "expected an object of clips"),
    "no entries": (edited(VAL_ACTIONS, lambda _: {}), "no entries"),
    "clip stands twice": (
        replaced(VAL_ACTIONS, f'"{CLIP}"', f'"{CLIP}": {{}}, "{CLIP}"'),
        "twice",
    ),
    "a number that is none": (
        replaced(VAL_ACTIONS, '"action":', '"score": NaN, "action":'),
        f"{CLIP}/0/score: NaN, expected a finite number",
    ),
    "a number too large": (
        replaced(VAL_ACTIONS, '"action":', '"score": [1e999], "action":'),
        f"{CLIP}/0/score/0: 1e999, expected a finite number",
    ),
    "keys of half emojis": (
        replaced(VAL_ACTIONS, '"action":', r'"\ud83d": 1, "\ud83e": 2, "action":'),
        "twice",
    ),
    "nested 200 deep": (
        replaced(VAL_ACTIONS, '"action":', f'"x": {"[" * 200}{"]" * 200}, "action":'),
        "not valid JSON",
    ),
    "nested too deep": (put(VAL_ACTIONS, "[" * 100_000), "not valid JSON"),
}
ONE_ENTRY: dict[str, tuple[Damage, str]] = {
    "clip is a list": (
        edited(VAL_ACTIONS, lambda content: content.update({CLIP: []})),
        "expected an object of actions",
    ),
    "entry is a text": (
        edited(VAL_ACTIONS, lambda content: content[CLIP].update({"0": "x"})),
        "expected an object",
    ),
    "no image_0": (edited(VAL_ACTIONS, without("image_0")), "image_0"),
    "no action": (edited(VAL_ACTIONS, without("action")), "action"),
    "image_0 is a number": (edited(VAL_ACTIONS, field("image_0", 7)), "image_0"),
    "image_0 leaves": (edited(VAL_ACTIONS, field("image_0", "../../x.jpg")), "leaves"),
    "image_0 is absolute": (edited(VAL_ACTIONS, field("image_0", "/etc/x.jpg")), "leaves"),
    "image_1 leaves": (edited(VAL_ACTIONS, field("image_1", "a/../../x.jpg")), "leaves"),
    "image_0 with a zero byte": (edited(VAL_ACTIONS, field("image_0", "a\0.jpg")), "zero byte"),
    "image_0 of 256 bytes": (edited(VAL_ACTIONS, field("image_0", "x" * 256)), "255 bytes"),
    "action is null": (edited(VAL_ACTIONS, field("action", None)), "action"),
    "clip has a slash": (edited(VAL_ACTIONS, clip_called("a/b")), "a/b"),
    "clip is ..": (edited(VAL_ACTIONS, clip_called("..")), "cannot name a folder"),
    "action id is ..": (edited(VAL_ACTIONS, action_called("..")), "cannot name a folder"),
}
ACTION_READERS = (
    "check",
    "describe",
    "merge",
    "compact",
    "metrics",
    "copy source",
    "features",
    "generate",
    "swap",
)
# The prompt is the description: the label is not read. A frame that is missing has no name to say.
UNREAD = {("generate", "no action"), ("generate", "action is null"), ("build", "missing")}

# ---- checkpoints


def renamed(tensors: dict) -> dict:
    return {f"other.{name}": value for name, value in tensors.items()}


def widened(tensors: dict) -> dict:
    """The largest matrix has one row more."""
    name = max((n for n in tensors if tensors[n].ndim == 2), key=lambda n: tensors[n].numel())
    value = tensors[name]
    return {**tensors, name: torch.cat([value, value[:1]])}


def one_less(tensors: dict) -> dict:
    name = sorted(n for n in tensors if tensors[n].ndim > 1)[0]
    return {n: value for n, value in tensors.items() if n != name}


CHECKPOINTS: dict[str, Callable[[str], Damage]] = {
    "missing": gone,
    "empty": lambda path: put(path, b""),
    "cut short": cut,
    "a web page": lambda path: put(path, "<html>404</html>"),
    "pickle with a payload": payload,
    "archive with a payload": lambda path: payload(path, inside_zip=True),
    "of another model": lambda path: weights(path, renamed),
    "of another width": lambda path: weights(path, widened),
    "lacks a weight": lambda path: weights(path, one_less),
}
LDM, VLLM = "model.ckpt", "vllm/model.safetensors"
CHECKPOINT_READERS = {
    "generate": LDM,
    "convert ldm": LDM,
    "frame": "frame.ckpt",
    "train": "start.safetensors",
    "cache": "start.safetensors",
    "describe": VLLM,
    "tune": VLLM,
    "convert vllm": VLLM,
}
VLLM_CONFIG = "vllm/config.json"
VLLM_CONFIGS: dict[str, tuple[Damage, str]] = {
    "config missing": (gone(VLLM_CONFIG), "config.json"),
    "config is no JSON": (put(VLLM_CONFIG, "{"), "config.json"),
    "config of GPT-2": (put(VLLM_CONFIG, '{"model_type": "gpt2"}'), "gpt2"),
    "config of another width": (
        edited(VLLM_CONFIG, lambda c: c.update(hidden_size=c["hidden_size"] * 2)),
        "",
    ),
    "config asks for code": (
        edited(VLLM_CONFIG, lambda c: c.update(mm_projector_type="__import__('os')")),
        "__import__",
    ),
    "tower's config is a list": (put("vllm/vision_tower/config.json", "[]"), "an object"),
    "added tokens are a list": (put("vllm/added_tokens.json", "[]"), "an object"),
    "tokenizer's config is a list": (put("vllm/tokenizer_config.json", "[1]"), "an object"),
    "picture settings are a list": (put("vllm/preprocessor_config.json", "[]"), "an object"),
    "a mean is a number": (put("vllm/preprocessor_config.json", '{"image_mean": 3}'), "three"),
    "tokenizer missing": (gone("vllm/tokenizer.model"), "tokenizer"),
    "tokenizer cut short": (cut("vllm/tokenizer.model"), "tokenizer"),
}

# ---- configs

# What is done to a config, and what is said; {} is the config's name without its ending.
YAML: dict[str, tuple[Callable[[str], Damage], str]] = {
    "missing": (gone, "no such"),
    "empty": (lambda path: put(path, ""), ""),
    "no YAML": (lambda path: put(path, "a: [1\nb: }"), ""),
    "a list": (lambda path: put(path, "- 1\n- 2\n"), ""),
    "not UTF-8": (lambda path: put(path, b"model: \xff\xfe"), ""),
    "unknown key": (lambda path: replaced(path, "  params:", "  parms:"), "params"),
    "unknown key below": (
        lambda path: replaced(path, "model_channels", "model_chanels"),
        "model_channels",
    ),
    "key twice": (lambda path: replaced(path, "inference:", "model: {}\ninference:"), ""),
    "wrong type": (
        lambda path: replaced(path, "scale_factor:", "scale_factor: large  #"),
        "scale_factor",
    ),
    "tag that builds an object": (
        lambda path: replaced(
            path, "inference:", "x: !!python/object/apply:os.mkdir [executed]\ninference:"
        ),
        "",
    ),
    "interpolation of nothing": (
        lambda path: replaced(path, "scale_factor:", "scale_factor: ${nothing.here}  #"),
        "nothing",
    ),
    "unknown class": (
        lambda path: replaced(path, "model:", "model:\n  target: os.system"),
        "os.system",
    ),
}
YAML_READERS = {"train": "train.yaml", "cache": "train.yaml", "generate": "generate.yaml"}


def products() -> list[Case]:
    """Every way to damage a file, on every command that reads such a file.

    Commands that read a kind of file read it by the same code. So by default each way is tried on
    every third command, and each command has every third way; the rest is slow.
    """
    cases: list[Case] = []

    def add(readers: Iterable[Any], ways: Iterable[Any], case: Callable[..., Case | None]) -> None:
        for (i, reader), (j, way) in product(enumerate(readers), enumerate(ways)):
            if made := case(*reader, *way):
                cases.append(replace(made, slow=(i + j) % 3 != 0))

    def picture(entry: str, path: str, code: int, what: str, damage: Callable) -> Case | None:
        name = path.rsplit("/", 1)[-1].strip("*")
        if (entry, what) in NOT_GENERATED:
            return Case(entry, f"picture: {what}", damage(path), ("1 frames",), 1)
        if (entry, what) in UNREAD:
            return None
        return Case(entry, f"picture: {what}", damage(path), (name,), code)

    def actions(entry: str, what: str, damage: Damage, said: str) -> Case | None:
        if (entry, what) in UNREAD:
            return None
        code = 1 if entry == "check" and what in ONE_ENTRY else 2
        return Case(entry, f"actions: {what}", damage, (VAL_ACTIONS, said), code)

    add(
        ((entry, *how) for entry, how in PICTURE_READERS.items()),
        PICTURES.items(),
        picture,
    )
    add(
        ((entry, *how) for entry, how in ARRAY_READERS.items()),
        ((what, *how) for what, how in ARRAYS.items()),
        lambda entry, path, code, what, damage, said: Case(
            entry, f"feature: {what}", damage(path), (FEATURE, said), code
        ),
    )
    add(
        ((entry,) for entry in ACTION_READERS),
        ((what, *how) for what, how in {**WHOLE_FILE, **ONE_ENTRY}.items()),
        actions,
    )
    add(
        CHECKPOINT_READERS.items(),
        CHECKPOINTS.items(),
        lambda entry, path, what, damage: Case(
            entry, f"checkpoint: {what}", damage(path), (path.split("/")[0],)
        ),
    )
    add(
        (("describe",), ("tune",), ("convert vllm",)),
        ((what, *how) for what, how in VLLM_CONFIGS.items()),
        lambda entry, what, damage, said: Case(
            entry, f"checkpoint: {what}", damage, ("vllm", said)
        ),
    )
    add(
        YAML_READERS.items(),
        ((what, *how) for what, how in YAML.items()),
        lambda entry, path, what, damage, said: Case(
            entry, f"config: {what}", damage(path), (path, said)
        ),
    )
    return cases

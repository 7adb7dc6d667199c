"""Intervals and presets of guidance, teachers and students that are refused: a row each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from bad_input_damage import Case, Damage, cut, untouched

INTERVAL, TEACHER = "inference.guidance_interval", "model.params.distill.teacher"


def noted(change: Callable[[Path, dict], object]) -> Damage:
    """model.ckpt as if it had been distilled at the config's scales, after `change(note)`."""

    def damage(root: Path) -> None:
        content = torch.load(root / "model.ckpt", weights_only=False)
        note = {"scale_txt": 1.5, "scale_img": 1.0}
        change(root, note)
        torch.save({**content, "distill": note}, root / "model.ckpt")

    return damage


def of(**scales: object) -> Damage:
    return noted(lambda _, note: note.update(scales))


GUIDANCE = [
    *(
        Case(
            "generate", f"interval {value}", untouched, (INTERVAL, said), more=f"{INTERVAL}={value}"
        )
        for value, said in (
            ("[5,0.3]", "0 <= low < high"),
            ("[1,1]", "0 <= low < high"),
            ("[-1,2]", "0 <= low < high"),
            ("[1]", "[low, high]"),
            ("[0,1,2]", "[low, high]"),
            ("[]", "[low, high]"),
            ("[0,.inf]", "finite"),
            ("[.nan,1]", "finite"),
            ("[a,b]", "Float"),
            ("3", "guidance_interval"),
        )
    ),
    Case(
        "generate", "no such preset", untouched, ("'quick'", "fast"), more="inference.preset=quick"
    ),
    *(
        Case(
            "train",
            f"teacher: {what}",
            damage,
            said,
            more=f"{TEACHER}={{root}}/{path} model.params.distill.scale_txt=1.5 "
            f"model.params.distill.scale_img=1.0 {more}",
        )
        for what, damage, path, more, said in (
            ("missing", untouched, "none.ckpt", "", (TEACHER, "none.ckpt")),
            ("a folder", untouched, "text_tower", "", ("text_tower", "no such checkpoint")),
            ("cut short", cut("model.ckpt"), "model.ckpt", "", ("model.ckpt",)),
            ("frozen parts alone", untouched, "start.safetensors", "", ("start.safetensors",)),
            ("a student", of(), "model.ckpt", "", ("model.ckpt", "distilled itself")),
            (
                "other scales shown",
                untouched,
                "model.ckpt",
                "model.params.distill.scale_txt=7.5",
                ("inference.scales_txt: 1.5, expected 7.5",),
            ),
        )
    ),
    *(
        Case(
            "train", f"{name}={value}", untouched, (f"distill.{name}", said), more=f"{key}={value}"
        )
        for name in ("scale_txt", "scale_img")
        for key in (f"model.params.distill.{name}",)
        for value, said in (
            ("[3,1]", "0 <= low < high"),
            ("[1]", "[low, high]"),
            ("fast", "finite"),
            (".inf", "finite"),
            ("null", "finite"),
        )
    ),
    *(
        Case(entry, f"student: {what}", damage, said)
        for entry, what, damage, said in (
            ("generate", "other scale", of(scale_txt=7.5), ("scales_txt: 1.5, expected 7.5",)),
            ("generate", "scale missing", of(scale_txt=None), ("model.ckpt", "distill.scale_txt")),
            ("generate", "scale a text", of(scale_img="1"), ("model.ckpt", "distill.scale_img")),
            ("generate", "told nothing", of(scale_img=[1.0, 2.0]), ("model.ckpt", "cond_proj")),
            ("convert ldm", "scale a text", of(scale_img="1"), ("model.ckpt", "distill.scale_img")),
        )
    ),
]

"""Bad input of tuning a model that is no LLaVA checkpoint, and of converting one, a row each."""

from __future__ import annotations

import shutil
from pathlib import Path

import model_families
from bad_input_damage import Case, Damage, put, untouched

FOLDER = "family"
MODEL = f"--model_name_or_path {{root}}/{FOLDER}"


def family(*names: str, damage: Damage = untouched) -> Damage:
    """The folder of a sound model, less the files `names`, then damaged."""

    def do(root: Path) -> None:
        model_families.write("qwen2_5_vl", root / FOLDER)
        for name in names:
            (root / FOLDER / name).unlink()
        damage(root)

    return do


def shouting(root: Path) -> None:
    """Its chat template writes answers in capitals."""
    path = root / FOLDER / "chat_template.jinja"
    path.write_text(path.read_text().replace("part['text'] }}", "part['text'] | upper }}"))


def of_texts(root: Path) -> None:
    (root / FOLDER).mkdir()
    put(f"{FOLDER}/config.json", '{"model_type": "gpt2"}')(root)


def a_file(root: Path) -> None:
    shutil.copy(root / "conversations.json", root / FOLDER)


TUNING = [
    Case("tune", what, damage, said, more=more)
    for what, damage, said, more in (
        ("image size 0", untouched, ("--image_size 0", "at least 1"), "--image_size 0"),
        ("other image size", untouched, ("--image_size 512", "one size"), "--image_size 512"),
        ("family as released", family(), (FOLDER, "--as_released"), f"{MODEL} --as_released True"),
        ("family cut so", family(), (FOLDER, "--cut_rule"), f"{MODEL} --cut_rule released"),
        ("family and a tower", family(), (FOLDER, "--vision_tower"), f"{MODEL} --vision_tower x"),
        ("family of pads", family(), ("'pads'", "square"), f"{MODEL} --image_aspect_ratio pads"),
        ("nothing to learn", family(), ("anything to learn",), f"{MODEL} --model_max_length 8"),
        ("no chat template", family("chat_template.jinja"), (FOLDER, "no chat_template"), MODEL),
        ("capitals", family(damage=shouting), (FOLDER, "answer as it is"), MODEL),
        ("no weights", family("model.safetensors"), (FOLDER, "cannot be loaded"), MODEL),
        ("no tokenizer", family("tokenizer.json"), (FOLDER, "cannot be loaded"), MODEL),
        ("model of texts", of_texts, (FOLDER, "gpt2", "image-text"), MODEL),
        ("model is a file", a_file, (FOLDER, "no such folder"), MODEL),
    )
] + [
    Case(
        "convert vllm",
        "another family",
        put("vllm/config.json", '{"model_type": "qwen2_5_vl", "vision_config": {}}'),
        ("vllm", "qwen2_5_vl", "in the hub's layout already"),
    )
]

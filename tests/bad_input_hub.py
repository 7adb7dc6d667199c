"""What `python -m lego.hub` refuses before anything is sent: folders, places, names, a row each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from bad_input_damage import Case, Damage, edited, put, untouched
from hub_server import hub_server

from lego.hub import main

LINE = "push {root}/vllm me/it --license mit"
CONFIG = "vllm/config.json"


def hub(argv: Sequence[str]) -> None:
    """The command, beside a server of its own that takes everything."""
    with hub_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.address)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        try:
            main(argv)
        except Exception:
            assert not server.repos.get("me/it"), "something was sent"
            raise


def names(value: str, key: str = "mm_vision_tower") -> Damage:
    return edited(CONFIG, lambda content: content.update({key: value}))


def adapter(root: Path) -> None:
    (root / "vllm" / "config.json").unlink()
    text = json.dumps({"base_model_name_or_path": "/home/me/base"})
    (root / "vllm" / "adapter_config.json").write_text(text)


PLACES = ("/data/clip/vit", "~/clip/vit", "C:\\\\clip\\\\vit", "../clip/vit", "file:///clip")
HUB = [
    Case("hub push", f"place {value}", names(value), ("config.json", "a place on this machine"))
    for value in PLACES
] + [
    Case("hub push", what, damage, said)
    for what, damage, said in (
        ("two kinds", put("vllm/model_index.json", "{}"), ("vllm", "config.json and model_index")),
        ("adapters without a base", adapter, ("vllm", "--base-model OWNER/NAME")),
    )
]
HUB += [
    Case("hub push", f"option {more}", untouched, said, more=more)
    for more, said in (
        ("--metric {root}/none.json", ("none.json", "no such file")),
        ("--metric {root}/conversations.json", ("conversations.json", "expected an object")),
        ("--metric {root}/actions.csv", ("actions.csv",)),
        ("--config {root}/none.yaml", ("--config", "none.yaml")),
        ("--config {root}/generate.yaml", ("generate.yaml", "a place on this machine")),
        ("--base-model {root}/vllm", ("vllm", "expected a hub name")),
        ("--datasets data", ("data", "expected a hub name")),
        ("--license", ("--license",)),
        ("--revision 'a b'", ("me/it@a b", "expected a hub name")),
    )
]
HUB += [
    Case("hub", f"arguments {more}", untouched, said, more=more)
    for more, said in (
        ("push {root}/none me/it --license mit", ("none", "found none")),
        ("push {root}/videos me/it --license mit", ("videos", "found none")),
        ("push {root}/model.ckpt me/it --license mit", ("model.ckpt", "convert_checkpoint.py")),
        ("push {root}/vllm it --license mit", ("it: expected a hub name",)),
        ("push {root}/vllm a/b/c --license mit", ("a/b/c: expected a hub name",)),
        ("push {root}/vllm me/it.ckpt --license mit", ("me/it.ckpt: expected a hub name",)),
        ("push {root}/vllm me/it", ("--license",)),
        ("pull it", ("it: expected a hub name",)),
        ("pull me/../it", ("me/../it: expected a hub name",)),
        ("pull me/it --out {root}/photo.jpg", ("me/it", "404")),
        ("space {root}/vllm --vllm a/b --ldm c/d --license mit", ("vllm", "is there already")),
        ("space {root}/out --vllm a/b --ldm c/d --license mit --config {root}/x", ("--config",)),
        ("fetch me/it", ("invalid choice: 'fetch'",)),
        ("", ("required",)),
    )
]

"""Adapters that stage 2 refuses: a row each."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from bad_input_damage import Case, Damage, cut, put, untouched
from safetensors.torch import save_file

ONE = "--lora {root}/one.safetensors"
LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"  # (64, 64)


def adapter(
    layer: str = LAYER, width: int = 64, ends=("lora_A", "lora_B"), **settings: object
) -> Damage:
    """one.safetensors with an adapter of rank 2; `settings`: peft's, of the UNet."""

    def damage(root: Path) -> None:
        down, up = torch.ones(2, width), torch.ones(64, 2)
        state = {f"{layer}.{end}.weight": x for end, x in zip(ends, (down, up), strict=False)}
        metadata = {
            "lora_adapter_metadata": json.dumps({f"unet.{k}": settings[k] for k in settings})
        }
        save_file(state, root / "one.safetensors", metadata)

    return damage


def both(first: Damage, second: Damage) -> Damage:
    return lambda root: (first(root), second(root))


FILES = {
    "missing": (untouched, ("one.safetensors", "expected a file, or FILE:SCALE")),
    "cut short": (both(adapter(), cut("one.safetensors")), ("one.safetensors", "not a readable")),
    "a web page": (put("one.safetensors", "<html>"), ("one.safetensors", "not a readable")),
    "weights of a network": (
        adapter(ends=("a", "b")),
        ("one.safetensors", f"{LAYER}.a.weight", "expected unet.LAYER.lora_A.weight"),
    ),
    "of kohya": (
        adapter("lora_unet_mid_block", ends=("lora_down", "lora_up")),
        ("lora_unet_mid_block.lora_down.weight", "expected unet.LAYER.lora_A.weight"),
    ),
    "of the text encoder": (
        adapter("text_encoder.encoder.layers.7.mlp.fc1"),
        ("one.safetensors", "unexpected: text_encoder.encoder.layers.7"),
    ),
    "of a layer that is not there": (
        adapter("unet.mid_block.attentions.7.to_q"),
        ("one.safetensors", "unexpected: unet.mid_block.attentions.7.to_q.lora_A.weight"),
    ),
    "of another width": (
        adapter(width=320),
        ("one.safetensors", f"mis-shaped: {LAYER}.lora_A.weight (2, 320), expected (2, 64)"),
    ),
    "half of one": (adapter(ends=("lora_A",)), (f"missing: {LAYER}.lora_B.weight",)),
    "of DoRA": (adapter(use_dora=True), ("one.safetensors", "unet.use_dora")),
}
SCALES = ("strong", "", "nan", "inf")
ENTRIES = ("generate", "convert ldm")
LORA = [
    *(
        Case(entry, f"adapters: {what}", damage, said, more=ONE)
        for what, (damage, said) in FILES.items()
        for entry in ENTRIES
    ),
    *(
        Case(entry, f"adapters: scale {scale!r}", adapter(), (":" + scale,), more=f"{ONE}:{scale}")
        for scale in SCALES
        for entry in (*ENTRIES, "frame")
    ),
    *(
        Case("train", f"adapters: {more}", untouched, said, more=f"model.params.lora.{more}")
        for more, said in (
            ("rank=-1", ("model.params.lora.rank=-1",)),
            ("rank=two", ("rank",)),
            ("ranks=2", ("did you mean 'model.params.lora.rank'",)),
            ("rank=2 model.params.lora.alpha=.nan", ("model.params.lora.alpha=nan",)),
            ("rank=2 model.params.lora.targets=[to_x]", ("'to_x'", "'attention', 'conditioner'")),
            ("rank=2 model.params.lora.targets=[attention,to]", ("targets: 'to'",)),
            ("rank=2 model.params.lora.targets=[]", ("model.params.lora.targets",)),
            ("rank=2 model.params.lora.targets=[norm1]", ("targets", "is not supported")),
        )
    ),
]

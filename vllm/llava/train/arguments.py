"""The flags of tuning: those of the released scripts, and transformers' TrainingArguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from transformers import HfArgumentParser, TrainingArguments

from egogen.errors import EgoGenError

EXAMPLE = """example:
  python -m llava.train.train --model_name_or_path runs/llava_pretrained \\
      --data_path data/ego4d_conversations.json --image_folder data/EgoGen/ego4d.fho/train \\
      --output_dir runs/vllm --num_train_epochs 3 --per_device_train_batch_size 16
The same command again continues from the newest whole checkpoint."""


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Folder of the pretrained model."})
    vision_tower: str | None = field(
        default=None, metadata={"help": "Folder of the vision tower when the checkpoint lacks it."}
    )
    version: str | None = field(
        default=None, metadata={"help": "Conversation template (default: what config.json says)."}
    )
    attn: str = field(default="sdpa", metadata={"help": "sdpa, eager or flash_attention_2."})


@dataclass
class DataArguments:
    data_path: str = field(metadata={"help": "The conversations file."})
    image_folder: str = field(metadata={"help": "Folder that its pictures are relative to."})
    image_aspect_ratio: str | None = field(
        default=None, metadata={"help": "square, pad or squeeze (default: config.json's)."}
    )
    cut_rule: str = field(
        default="expanded",
        metadata={"help": "What model_max_length counts: 'expanded' pictures, or as 'released'."},
    )
    image_cache: int = field(default=0, metadata={"help": "Pictures kept in memory."})
    lazy_preprocess: bool = field(default=True, metadata={"help": "Accepted; always the case."})


@dataclass
class TuningArguments(TrainingArguments):
    model_max_length: int = field(default=2048, metadata={"help": "Longest sequence."})
    warmup_ratio: float = field(default=0.0, metadata={"help": "Share of the steps that warm up."})
    evaluation_strategy: str = field(default="no", metadata={"help": "Accepted; only 'no'."})
    lr_rule: str = field(
        default="command",
        metadata={
            "help": "'command': --lr_scheduler_type as given; 'released': DeepSpeed's WarmupLR, "
            "which overrode it in the published runs."
        },
    )

    def __post_init__(self):
        if self.warmup_ratio and not self.warmup_steps:
            self.warmup_steps = self.warmup_ratio  # a number below 1 is a share
        self.remove_unused_columns = False  # samples are ours, not columns of a table
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        super().__post_init__()


CHOICES = {
    "cut_rule": ("expanded", "released"),
    "lr_rule": ("command", "released"),
    "evaluation_strategy": ("no",),
    "attn": ("sdpa", "eager", "flash_attention_2"),
}


def parse(
    argv: Sequence[str] | None,
) -> tuple[ModelArguments, DataArguments, TuningArguments]:
    """Parse and check the flags. Logs go to TensorBoard unless --report_to says otherwise."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TuningArguments),
        prog="python -m llava.train.train",
        description="Tune the vision-language model on conversations about frames.",
        epilog=EXAMPLE,
    )
    argv = [*(argv or [])]
    if not any(item.startswith("--report_to") for item in argv):
        argv += ["--report_to", "tensorboard" if find_spec("tensorboard") else "none"]
    groups = parser.parse_args_into_dataclasses(argv)
    for group in groups:
        for name, allowed in CHOICES.items():
            value = getattr(group, name, allowed[0])
            if value not in allowed:
                raise EgoGenError(f"--{name} {value!r}: expected one of {', '.join(allowed)}")
    return groups

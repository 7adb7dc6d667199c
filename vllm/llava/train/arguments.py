"""The flags of tuning: those of the released scripts, and transformers' TrainingArguments."""

import argparse
import difflib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import HfArg

from egogen import add_flags, read_command, read_object
from egogen.errors import EgoGenError, check_choice, need_package
from llava import COMMANDS
from llava.train.parallel import processes, read_deepspeed, start_deepspeed

NAME = "llava.train.train"
HELP, CHOICES = read_command(COMMANDS, f"{NAME}.help"), read_command(COMMANDS, f"{NAME}.choices")

# The released flag keeps its name here, whatever transformers will call it.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)

# What `--as_released` stands for: the switches of tuning as in the released code. A flag on the
# command line wins over it.
AS_RELEASED = {"cut_rule": "released", "lr_rule": "released", "image_aspect_ratio": "square"}
AS_RELEASED["average_tokens_across_devices"] = "False"


@dataclass
class LoraArguments:
    lora_enable: bool = field(default=False, metadata={"help": "Tune adapters and the projector."})
    lora_r: int = field(default=128, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=256, metadata={"help": "Adapters count alpha / r."})
    lora_dropout: float = field(default=0.05)
    bits: int = field(default=16, metadata={"help": "4 or 8: quantized frozen weights (QLoRA)."})


def share_out(tuning: Any) -> None:
    """Set the accumulation by --global_batch, and read engine files, before transformers does.

    Raises EgoGenError for batches that do not divide, and for --fsdp in one process.
    """
    if tuning.global_batch:
        each, whole = tuning.per_device_train_batch_size, tuning.global_batch
        tuning.gradient_accumulation_steps = whole // (each * processes())
        if whole % (each * processes()):
            factors = f"--per_device_train_batch_size {each} times {processes()} processes"
            raise EgoGenError(f"--global_batch {whole}: expected a multiple of {factors}")
    if isinstance(tuning.deepspeed, str):
        tuning.deepspeed = read_deepspeed(tuning.deepspeed, tuning.use_cpu)
    if isinstance(tuning.fsdp_config, str):
        tuning.fsdp_config = read_object(tuning.fsdp_config)
    tuning.fsdp = {"true": True, "false": None}.get(str(tuning.fsdp).lower(), tuning.fsdp)
    if tuning.fsdp and processes() == 1:
        raise EgoGenError("--fsdp: one process has nobody to share with, expected torchrun")
    if tuning.fsdp:  # transformers' loader looks here, and else reads the weights in every process
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        efficient = (tuning.fsdp_config or {}).get("cpu_ram_efficient_loading", False)
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = str(efficient).lower()


@dataclass
class TuningArguments(TrainingArguments):
    model_max_length: int = field(default=2048, metadata={"help": "Longest sequence."})
    warmup_ratio: float = field(default=0.0, metadata={"help": "Share of the steps that warm up."})
    evaluation_strategy: str = field(default="no", metadata={"help": "Accepted; only 'no'."})
    lazy_preprocess: bool = field(default=True, metadata={"help": "Accepted; always the case."})
    global_batch: int = HfArg(help=HELP["global_batch"], default=0)
    lr_rule: str = HfArg(help=HELP["lr_rule"], default="command")
    as_released: bool = HfArg(help="All switches as in the released code.", default=False)

    settings = {}  # what the run depends on besides: goes to the loggers with the flags here

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **self.settings}

    def __post_init__(self):
        if self.warmup_ratio and not self.warmup_steps:
            self.warmup_steps = self.warmup_ratio  # a number below 1 is a share
        self.remove_unused_columns = False  # samples are ours, not columns of a table
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        if not torch.cuda.is_available():
            self.use_cpu = True
            self.tf32 = None  # a mode of tensor cores; asking for it elsewhere is an error
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # the projector always takes part
        if self.gradient_checkpointing and self.gradient_checkpointing_kwargs is None:
            self.gradient_checkpointing_kwargs = {"use_reentrant": False}
        self.kept, self.save_total_limit = self.save_total_limit, None  # see CompleteCheckpoints
        share_out(self)
        super().__post_init__()
        self._n_gpu = min(self._n_gpu, 1)  # one process, one GPU: several are torchrun's business
        if self.deepspeed:
            start_deepspeed(self.use_cpu)

    @property
    def engine(self) -> str:
        """ "zero3", "zero2" ..., "fsdp" or "ddp": decides which checkpoints can be continued."""
        if self.deepspeed:
            return f"zero{self.deepspeed['zero_optimization'].get('stage', 0)}"
        return "fsdp" if self.fsdp else "ddp"

    @property
    def step_samples(self) -> int:
        """Samples of one optimizer step over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size


LOGGERS = {"tensorboard", "wandb"}  # of --report_to, those that are a package of that name


class Flags(NamedTuple):
    """`data` holds those of commands.toml: which model is tuned, on what."""

    lora: LoraArguments
    tuning: TuningArguments
    data: argparse.Namespace


def parse(argv: Sequence[str] | None) -> Flags:
    """Parse and check the flags. Logs go to TensorBoard unless --report_to says otherwise."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed else warns that it found none
    groups = LoraArguments, TuningArguments
    parser = HfArgumentParser(groups, **read_command(COMMANDS, NAME))
    add_flags(parser, COMMANDS, f"{NAME}.data")
    given = _defaults(argv or ())
    try:
        found = parser.parse_args_into_dataclasses(given, return_remaining_strings=True)
    except ValueError as error:
        raise EgoGenError(f"flags of tuning: {error}") from None
    *parts, unknown = found
    if unknown:
        names = [action.dest for action in parser._actions]
        near = difflib.get_close_matches(unknown[0].lstrip("-").replace("-", "_"), names, n=1)
        advice = f", expected perhaps --{near[0]}" if near else ""
        raise EgoGenError(f"unknown flag {unknown[0]}{advice}")
    flags = Flags(*parts)
    for group in flags:
        for name, allowed in CHOICES.items():
            check_choice(f"--{name} ", getattr(group, name, allowed[0]), allowed)
    for logger in flags.tuning.report_to:
        if logger in LOGGERS:
            need_package(logger, f"--report_to {logger}")
    if flags.lora.bits != 16 and not flags.lora.lora_enable:
        expected = "quantized weights stay frozen, expected also --lora_enable True"
        raise EgoGenError(f"--bits {flags.lora.bits}: {expected}")
    if flags.lora.lora_enable:
        need_package("peft", "--lora_enable")
    if flags.lora.bits != 16:
        need_package("bitsandbytes", f"--bits {flags.lora.bits}")
    return flags


def _defaults(argv: Sequence[str]) -> list[str]:
    """Flags that this project sets, in front: the last one of a name counts."""
    first = ["--report_to", "tensorboard" if find_spec("tensorboard") else "none"]
    switch = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    switch.add_argument("--as_released", "--as-released", nargs="?", const="yes", default="no")
    if switch.parse_known_args(argv)[0].as_released.lower() in ("yes", "true", "1"):
        first += [part for name, value in AS_RELEASED.items() for part in (f"--{name}", value)]
    return [*first, *argv]

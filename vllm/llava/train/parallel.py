"""What shares a model among processes: plain DDP, DeepSpeed's ZeRO stages, or FSDP."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from egogen.atomic import read_object
from egogen.errors import EgoGenError, need_package


def processes() -> int:
    """How many processes the launcher started (torchrun and deepspeed set WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that prints, and writes the files that there are once."""
    return int(os.environ.get("RANK", "0")) == 0


def any_process(value: bool, device: torch.device) -> bool:
    """Whether `value` holds in any of the processes; all of them have to call this."""
    if not torch.distributed.is_initialized():
        return value
    flag = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def read_deepspeed(path: str | Path, cpu: bool) -> dict[str, Any]:
    """A DeepSpeed file without its scheduler, which would override --lr_scheduler_type.

    The published runs had such a file (WarmupLR); `--lr_rule released` gives its rates. On the CPU
    the optimizer is PyTorch's own: DeepSpeed's would be compiled first, for minutes.
    """
    need_package("deepspeed", "--deepspeed")
    settings = read_object(path)
    if "zero_optimization" not in settings:
        raise EgoGenError(f"{path}: expected a DeepSpeed configuration with 'zero_optimization'")
    if settings.pop("scheduler", None) and is_first():
        print(f"{path}: its scheduler is left out, see --lr_rule", file=sys.stderr)
    if cpu and "optimizer" in settings:
        settings["optimizer"].setdefault("params", {})["torch_adam"] = True
    return settings


def start_deepspeed(cpu: bool) -> None:
    """Join DeepSpeed's communication to the process group, which ZeRO-3 needs to load a model."""
    import deepspeed

    if cpu:  # gloo does: DeepSpeed's kernel for shared memory would be compiled first, for a minute
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if cpu else None, verbose=False)

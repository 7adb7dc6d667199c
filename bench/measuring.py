"""What the benches share: how time and memory are measured, on a CPU and on a GPU."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

COMMANDS = Path(__file__).with_name("commands.toml")


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Processor time of this process on a CPU; the clock's, between synchronizations, on CUDA."""
    if device.type != "cuda":
        begun = time.process_time()
        call()
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def peak_bytes(device: torch.device) -> int:
    """The most that was held so far: by this process on a CPU, in tensors on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Where the processes of a training run come from: this machine, Slurm, or torchrun."""

import os
from typing import Any

import torch
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from egogen import EgoGenError


def device_options(gpus: str | None) -> dict[str, Any]:
    """--gpus, as in "0,1,2", -> arguments of Lightning's Trainer; None is the CPU."""
    if gpus is None:
        return {"accelerator": "cpu"}
    try:
        numbers = [int(number) for number in gpus.strip(",").split(",")]
    except ValueError:
        raise EgoGenError(f"--gpus {gpus}: expected numbers, as in 0,1,2,3") from None
    found = torch.cuda.device_count()
    if min(numbers) < 0 or max(numbers) >= found or len(set(numbers)) < len(numbers):
        raise EgoGenError(
            f"--gpus {gpus}: this machine has {found} GPUs, numbered from 0, each named once"
        )
    return {"accelerator": "gpu", "devices": numbers}


def cluster_environment(devices: int, nodes: int) -> ClusterEnvironment | None:
    """The plugin for Lightning's Trainer. Raises EgoGenError for nodes that nothing starts.

    srun with a task per device: Slurm's. A Slurm job whose one task is this command, a shell of
    salloc, or no cluster at all: this process starts the others; then a NODE_RANK that some other
    tool has left in the environment would count the ranks from the wrong one. None: torchrun, which
    Lightning finds.
    """
    if TorchElasticEnvironment.detect():
        return None
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        # Requeueing is ours, see `ldm.training.saving.Checkpoints`.
        return SLURMEnvironment(auto_requeue=False)
    if nodes > 1:
        if "NODE_RANK" not in os.environ:
            raise EgoGenError(
                f"lightning.trainer.num_nodes={nodes}: expected srun with {devices} tasks a node, "
                "torchrun, or MASTER_ADDR, MASTER_PORT and NODE_RANK set on each node"
            )
    else:
        for name in ("NODE_RANK", "GROUP_RANK"):
            os.environ.pop(name, None)
    return LightningEnvironment()

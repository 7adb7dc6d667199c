"""Training that is asked to stop: which signals ask, and the job that is queued again."""

from __future__ import annotations

import os
import signal
import subprocess

from egogen.errors import EgoGenError

# Slurm is asked to send the first before the time limit; the second comes with a preemption.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StoppedBySignal(EgoGenError):
    """The run was asked to end early; its checkpoint is written."""


def requeue() -> str:
    """Ask Slurm to run this job again; -> what came of it, empty outside Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return ""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"job {job} was not requeued ({error})"
    if done.returncode:
        return f"job {job} was not requeued ({done.stderr.strip()})"
    return f"job {job} is requeued"

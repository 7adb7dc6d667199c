#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
# One chunk of a generation, as a task of an array job (sbatch_inference/submit.sh submits it).
set -euo pipefail
root=${LEGO_ROOT:?}
source "$root/scripts/slurm_job.sh"
cd "$root"
echo "chunk $SLURM_ARRAY_TASK_ID on $(hostname), $(date), attempt $((${SLURM_RESTART_COUNT:-0} + 1))"
job_run "$(project_python)" metrics/inference.py "$@" --chunk_idx "$SLURM_ARRAY_TASK_ID"

#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
# Tuning of stage 1 over the nodes of a job: one process a GPU, started by srun.
set -euo pipefail
root=${LEGO_ROOT:?}
source "$root/scripts/slurm_job.sh"
PYTHON=$(project_python)
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export PYTHON MASTER_ADDR MASTER_PORT LEGO_TASK_PER_GPU=1
echo "tuning on $SLURM_JOB_NODELIST, $(date), attempt $((${SLURM_RESTART_COUNT:-0} + 1))"
job_run_warned srun --kill-on-bad-exit=1 bash "$@"

#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
# Training of stage 2 over the nodes of a job: one process a GPU, started by srun.
set -euo pipefail
root=${LEGO_ROOT:?}
source "$root/scripts/slurm_job.sh"
cd "$root"
echo "training on $SLURM_JOB_NODELIST, $(date), attempt $((${SLURM_RESTART_COUNT:-0} + 1))"
job_run_warned srun --kill-on-bad-exit=1 "$(project_python)" main.py "$@"

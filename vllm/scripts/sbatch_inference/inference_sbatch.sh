#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
# One chunk of a description, as a task of an array job (vllm/scripts/sbatch_inference.sh submits it).
set -euo pipefail
root=${LEGO_ROOT:?}
source "$root/scripts/slurm_job.sh"
export PYTHONPATH="$root:$root/vllm${PYTHONPATH:+:$PYTHONPATH}"
echo "chunk $SLURM_ARRAY_TASK_ID on $(hostname), $(date), attempt $((${SLURM_RESTART_COUNT:-0} + 1))"
job_run "$(project_python)" -m llava.eval.run_llava_in_loop "$@" --chunk-idx "$SLURM_ARRAY_TASK_ID"

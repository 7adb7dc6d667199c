#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
# Merge the chunks of the array job $1, or say which of them did not succeed.
set -euo pipefail
root=${LEGO_ROOT:?}
source "$root/scripts/slurm_job.sh"
array=$1
shift
if unfinished=$(scontrol show job "$array" -o 2>/dev/null | grep -v "JobState=COMPLETED" \
    | grep -o "ArrayTaskId=[0-9,-]*" | cut -d= -f2 | sort -n | tr '\n' ' ') && [ -n "$unfinished" ]; then
  echo "chunks that did not succeed: ${unfinished% } (their logs: describe_${array}_N.log)" >&2
fi
"$(project_python)" "$root/vllm/scripts/merge_inference_results.py" "$@"

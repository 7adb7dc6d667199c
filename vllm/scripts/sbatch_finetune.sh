#!/usr/bin/env bash
# Tune the vision-language model on a Slurm cluster; behind the dataset come the words of
# vllm/scripts/finetune_ego4d.sh or finetune_epickitchen.sh:
#
#   bash vllm/scripts/sbatch_finetune.sh ego4d MODEL DATA IMAGES OUTPUT \
#       --nodes 1 --gpus 8 --time 24:00:00 [flags of llava.train.train]
#
# Options of the cluster stand in scripts/slurm.sh, the engine is ENGINE. Logs: vllm/out/logs. The job
# is queued again when its time ends or it is preempted, and goes on from its last checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/slurm.sh"
source "$(dirname "${BASH_SOURCE[0]}")/finetune.sh"
script="$here/finetune_${1:-}.sh"
if [ $# = 0 ] || [ ! -f "$script" ]; then
  fail "usage: sbatch_finetune.sh ego4d|epickitchen MODEL DATA IMAGES OUTPUT"
fi
dataset=${1/mini/}
shift
find_paths "$@"
submit_training tune "$root/vllm/out/logs" "$here/sbatch_inference/finetune_sbatch.sh" "$script" \
  "${paths[@]}" ${flags[@]+"${flags[@]}"}

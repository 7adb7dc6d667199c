#!/usr/bin/env bash
# Train stage 2 on a Slurm cluster; the words are those of main.py:
#
#   bash sbatch_inference/train.sh --nodes 2 --gpus 8 --time 24:00:00 \
#       --name lego_ego4d --base configs/train_ego4d.yaml --train [key=value ...]
#
# Options of the cluster stand in scripts/slurm.sh. Logs: logs/out. The job is queued again when its
# time ends or it is preempted, and goes on from the last checkpoint.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/slurm.sh"
[ $# -gt 0 ] || fail "usage: train.sh --nodes N --gpus M --name NAME --base CONFIG --train"
submit_training train "$root/logs/out" "$root/sbatch_inference/train_sbatch.sh" "$@" \
  "lightning.trainer.num_nodes=$LEGO_NODES"

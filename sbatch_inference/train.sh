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
logs="$root/logs/out"
mkdir -p "$logs"
export LEGO_ROOT="$root"
tasks=$LEGO_GPUS
[ "$tasks" != 0 ] || tasks=1
job=$(submit --job-name=lego-train "--nodes=$LEGO_NODES" "--ntasks-per-node=$tasks" \
  "--output=$logs/train_%j.log" "$root/sbatch_inference/train_sbatch.sh" "$@" \
  "lightning.trainer.num_nodes=$LEGO_NODES")
echo "train: job $job on $LEGO_NODES nodes of $tasks processes; logs in $logs"

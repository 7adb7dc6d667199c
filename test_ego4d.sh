#!/usr/bin/env bash
# Generate the ego4d val frames of a checkpoint on a Slurm cluster: bash test_ego4d.sh logs/X.ckpt
# (options: sbatch_inference/submit.sh).
root="$(cd "$(dirname "$0")" && pwd)"
exec bash "$root/sbatch_inference/submit.sh" "$root/configs/generate_ego4d.yaml" "$@"

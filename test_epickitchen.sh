#!/usr/bin/env bash
# Generate the epickitchen val frames of a checkpoint on a Slurm cluster: bash test_epickitchen.sh logs/X.ckpt
# (options: sbatch_inference/submit.sh).
root="$(cd "$(dirname "$0")" && pwd)"
exec bash "$root/sbatch_inference/submit.sh" "$root/configs/generate_epickitchen.yaml" "$@"

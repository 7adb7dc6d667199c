#!/usr/bin/env bash
# Tune the vision-language model on Ego4D, with the hyperparameters of the published run: a step
# learns 128 samples, 16 on each of 8 GPUs. Paths and variables are explained in finetune.sh:
#   MODEL=llava_pretrained DATA=ego4d.json IMAGES=EgoGen/ego4d.fho/train OUTPUT=runs/ego4d \
#       bash vllm/scripts/finetune_ego4d.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/finetune.sh"
dataset=ego4d
find_paths "$@"
run_published 150

#!/usr/bin/env bash
# Tune the vision-language model on Epic-Kitchens, with the hyperparameters of the published run: a step
# learns 128 samples, 16 on each of 8 GPUs. Paths and variables are explained in finetune.sh:
#   MODEL=llava_pretrained DATA=epickitchen.json IMAGES=EgoGen/epickitchen/train OUTPUT=runs/epickitchen \
#       bash vllm/scripts/finetune_epickitchen.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/finetune.sh"
dataset=epickitchen
find_paths "$@"
run_published 140

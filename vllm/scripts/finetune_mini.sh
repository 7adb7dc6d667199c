#!/usr/bin/env bash
# Tune the small model of the mini world, with the same entry as the full-size runs. Paths and
# variables are explained in finetune.sh:
#   bash vllm/scripts/finetune_mini.sh MODEL DATA IMAGES OUTPUT --num_train_epochs 3
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/finetune.sh"
find_paths "$@"
GPUS="${GPUS:-1}"  # it is small
run_tuning ddp \
  --num_train_epochs 3 --per_device_train_batch_size 8 --learning_rate 1e-3 \
  --lr_scheduler_type cosine --warmup_ratio 0.05 --weight_decay 0 --logging_steps 5 \
  --save_strategy steps --save_steps 200 --save_total_limit 1 \
  --image_cache 4096 --seed 42

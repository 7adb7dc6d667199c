#!/usr/bin/env bash
# Tune the small model of the mini world, with the same entry as the full-size runs.
# Paths are arguments or environment variables: MODEL, DATA, IMAGES, OUTPUT. Further flags are passed on:
#   bash vllm/scripts/finetune_mini.sh MODEL DATA IMAGES OUTPUT --num_train_epochs 3
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
positional=()
while [[ $# -gt 0 && $1 != --* ]]; do positional+=("$1"); shift; done
model="${positional[0]:-${MODEL:-}}" data="${positional[1]:-${DATA:-}}"
images="${positional[2]:-${IMAGES:-}}" output="${positional[3]:-${OUTPUT:-}}"
for pair in "MODEL=$model" "DATA=$data" "IMAGES=$images" "OUTPUT=$output"; do
  if [[ -z "${pair#*=}" ]]; then
    echo "error: ${pair%%=*} is not given; usage: $0 MODEL DATA IMAGES OUTPUT [flags]" >&2
    exit 2
  fi
done
export PYTHONPATH="$root:$root/vllm${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m llava.train.train \
  --model_name_or_path "$model" --data_path "$data" --image_folder "$images" --output_dir "$output" \
  --num_train_epochs 3 --per_device_train_batch_size 8 --learning_rate 1e-3 \
  --lr_scheduler_type cosine --warmup_ratio 0.05 --weight_decay 0 --logging_steps 5 \
  --save_strategy steps --save_steps 200 --save_total_limit 1 \
  --image_cache 4096 --seed 42 "$@"

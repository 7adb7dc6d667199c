# shellcheck shell=bash
# Sourced by the finetune_*.sh scripts: finds paths and engine, starts the processes, passes flags on.
#
#   bash vllm/scripts/finetune_ego4d.sh MODEL DATA IMAGES OUTPUT [flags of llava.train.train]
#
# The four paths may also come from the environment, or as the flags of the entry:
#   MODEL   --model_name_or_path  folder of the pretrained model, or its name on the hub (OWNER/NAME)
#   DATA    --data_path           the conversations file
#   IMAGES  --image_folder        folder that its images are relative to
#   OUTPUT  --output_dir          where checkpoints and the tuned model go
# What is given in no way is looked for by settings.env, except in the mini run: MODEL in
# LEGO_WEIGHTS/pretrained, DATA in curation_from_gpt or gpt_curated of LEGO_DATASET (if it is
# clear which), IMAGES in LEGO_DATASET; OUTPUT is below LEGO_OUTPUT/vllm/out.
# Further variables:
#   ENGINE  zero3_offload | zero3 | zero2 | fsdp | ddp, or a DeepSpeed file  (default: the script's)
#   GPUS    processes on this machine  (default: one per visible GPU, at least one)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT  for several machines
#   PYTHON  the interpreter  (default: python)
# Behind srun with a task a GPU (vllm/scripts/sbatch_finetune.sh) each task is one of the processes.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
source "$root/scripts/settings.sh"
PYTHON="$(project_python)"
export PYTHONPATH="$root:$root/vllm${PYTHONPATH:+:$PYTHONPATH}"

flag_value() { # flag_value NAME "$@": the value that follows --NAME, or stands in --NAME=value
  local name="--$1" value="" previous=""; shift
  for item in "$@"; do
    [[ "$previous" == "$name" ]] && value="$item"
    [[ "$item" == "$name="* ]] && value="${item#*=}"
    previous="$item"
  done
  printf '%s' "$value"
}

path_by_settings() { # path_by_settings NAME: where a file of $dataset is by settings.env, or nothing
  local found place
  [[ -n "${dataset:-}" ]] || return 0
  from_settings "$dataset" train
  case $1 in
    MODEL) printf '%s' "${pretrained:?}" ;;
    IMAGES) printf '%s' "${image_dir:?}" ;;
    OUTPUT) printf '%s' "${model_path:?}" ;;
    DATA)
      for place in curation_from_gpt gpt_curated; do  # of the hub, of Dropbox
        found=("$LEGO_DATASET/$place"/*"$dataset"*.json)
        [[ -f "${found[0]}" ]] || continue
        if (( ${#found[@]} == 1 )); then printf '%s' "${found[0]}"; fi
        break
      done ;;
  esac
}

find_paths() { # find_paths "$@": sets paths and flags, or prints all that is wrong with the paths
  local positional=() wrong=() name flag value index=0
  if [[ " $* " =~ \ (--help|-h)\  ]]; then
    sed -n '4,/^#   PYTHON/{s/^# \{0,1\}//;p}' "$here/finetune.sh"
    exec "$PYTHON" -m llava.train.train --help
  fi
  while [[ $# -gt 0 && $1 != --* ]]; do positional+=("$1"); shift; done
  flags=("$@") paths=()
  for pair in MODEL:model_name_or_path DATA:data_path IMAGES:image_folder OUTPUT:output_dir; do
    name="${pair%%:*}" flag="${pair#*:}"
    value="$(flag_value "$flag" "$@")"
    value="${value:-${positional[$index]:-${!name:-}}}"
    value="${value:-$(path_by_settings "$name")}"
    index=$((index + 1))
    if [[ -z "$value" ]]; then
      wrong+=("$name (--$flag) is not given")
    elif [[ $name == DATA && ! -f "$value" ]]; then
      wrong+=("$name=$value: no such file")
    elif [[ $name == MODEL && $value =~ ^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$ && ! -d ${value%/*} ]]; then
      :  # OWNER/NAME on the hub
    elif [[ $name =~ ^(MODEL|IMAGES)$ && ! -d "$value" ]]; then
      wrong+=("$name=$value: no such folder")
    fi
    paths+=("--$flag" "$value")
  done
  (( ${#positional[@]} <= 4 )) || wrong+=("unexpected argument ${positional[4]:-}")
  if (( ${#wrong[@]} )); then
    for value in "${wrong[@]}"; do echo "error: $value" >&2; done
    echo "usage: bash $0 MODEL DATA IMAGES OUTPUT [flags], or these names as variables" >&2
    exit 2
  fi
}

run_tuning() { # run_tuning DEFAULT_ENGINE [flags]: with the paths and flags that find_paths found
  local engine="${ENGINE:-$1}" gpus shared=() launch=("$PYTHON"); shift
  gpus="${GPUS:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
  case "$engine" in
    ddp) ;;
    fsdp) shared+=(--fsdp True --fsdp_config "$here/fsdp.json") ;;
    zero2 | zero3 | zero3_offload) shared+=(--deepspeed "$here/$engine.json") ;;
    *.json) shared+=(--deepspeed "$engine") ;;
    *) echo "error: ENGINE=$engine: expected zero3_offload, zero3, zero2, fsdp, ddp or FILE.json" >&2; exit 2 ;;
  esac
  if [[ -n "${LEGO_TASK_PER_GPU:-}" ]]; then
    export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
  elif [[ "$engine" != ddp || "$gpus" != 1 || "${NNODES:-1}" != 1 ]]; then
    launch+=(-m torch.distributed.run --nproc_per_node "$gpus")
    if [[ "${NNODES:-1}" == 1 ]]; then
      launch+=(--standalone)
    else
      launch+=(--nnodes "$NNODES" --node_rank "${NODE_RANK:?}" --master_addr "${MASTER_ADDR:?}"
               --master_port "${MASTER_PORT:-29500}")
    fi
  fi
  exec "${launch[@]}" -m llava.train.train "${paths[@]}" "${shared[@]}" "$@" "${flags[@]}"
}

run_published() { # run_published SAVE_STEPS: the hyperparameters of the published runs
  run_tuning zero3_offload \
    --version llava_llama_2 --num_train_epochs 3 --global_batch 128 --per_device_train_batch_size 16 \
    --learning_rate 2e-5 --weight_decay 0 --warmup_ratio 0.03 --lr_scheduler_type cosine \
    --max_grad_norm 1.0 --adam_beta1 0.9 --adam_beta2 0.999 --adam_epsilon 1e-8 \
    --bf16 True --tf32 True --gradient_checkpointing True --model_max_length 2048 --seed 42 \
    --evaluation_strategy no --save_strategy steps --save_steps "$1" --save_total_limit 4 \
    --logging_steps 1 --dataloader_num_workers 4 --lazy_preprocess True
}

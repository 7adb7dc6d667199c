#!/usr/bin/env bash
# Describe a split on a Slurm cluster: one array job with a task a chunk, then a job that merges the
# chunks when all have succeeded. Paths are environment variables or arguments:
#
#   bash vllm/scripts/sbatch_inference.sh --model_path M --image_dir I --action_label A \
#       --save_path S --save_image_feature_path F --save_text_feature_path T [--chunks 5] [FLAGS ...]
#
# With --dataset ego4d|epickitchen [--split val] those that are not given are by settings.env: the frames
# and action file of LEGO_DATASET, and model, descriptions and features below LEGO_OUTPUT/vllm/out.
#
# model_path               tuned weights
# image_dir                frames of the split
# action_label             its action file
# save_path                folder of the descriptions; merged: SAVE_PATH.json, and for stage 2
#                          SAVE_PATH_actions.json
# save_image_feature_path, save_text_feature_path   roots of the features
#
# FLAGS (--batch-size 16, --engine openai --base-url URL --model NAME ...) go to
# llava.eval.run_llava_in_loop; with --text-only no GPU is asked for, and neither model_path nor
# save_*_feature_path are needed. A server's key is taken along from OPENAI_API_KEY. Options of the cluster (--account,
# --partition, --qos, --gpus, --time, --dry-run ...) stand in scripts/slurm.sh. Logs: vllm/out/logs.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$root/scripts/slurm.sh"
source "$root/scripts/settings.sh"

names=(model_path image_dir action_label save_path save_image_feature_path save_text_feature_path)
chunks=${CHUNKS:-5} split=${SPLIT:-val} dataset=
flags=()
while [ $# -gt 0 ]; do
  name=${1#--}
  if [[ " ${names[*]} chunks split dataset " == *" $name "* && $1 == --* ]]; then
    [ $# -ge 2 ] || fail "$1 needs a value"
    declare "$name=$2"
    [ "$name" != dataset ] || flags+=(--dataset "$2")
    shift 2
  else flags+=("$1"); shift; fi
done
[ -z "$dataset" ] || from_settings "$dataset" "$split"
if [[ " ${flags[*]-} " == *" --text-only "* ]]; then
  names=(image_dir action_label save_path)
  export LEGO_GPUS=0
fi
missing=()
for name in "${names[@]}"; do [ -n "${!name:-}" ] || missing+=("$name"); done
[ "${#missing[@]}" = 0 ] || fail "not given: ${missing[*]} (as --NAME VALUE or environment variable)"
absent=()
for name in model_path image_dir action_label; do
  [[ " ${names[*]} " != *" $name "* || -e ${!name} ]] || absent+=("$name=${!name}")
done
[ "${#absent[@]}" = 0 ] || fail "no such file or folder: ${absent[*]}"
[[ $chunks =~ ^[1-9][0-9]*$ ]] || fail "--chunks $chunks: expected a number from 1"

logs="$root/vllm/out/logs"
mkdir -p "$logs"
export LEGO_ROOT="$root"
save_path=${save_path%/}
words=()
for name in "${names[@]}"; do words+=("--${name//_/-}" "${!name}"); done
# shellcheck disable=SC2154  # $names are set by name: environment, arguments or settings.env
array=$(submit --job-name=lego-describe "--array=1-$chunks" "--output=$logs/describe_%A_%a.log" \
  "$root/vllm/scripts/sbatch_inference/inference_sbatch.sh" \
  "${words[@]}" --num-chunks "$chunks" ${flags[@]+"${flags[@]}"})
# shellcheck disable=SC2154
merge=$(LEGO_GPUS=0 submit --job-name=lego-merge "--dependency=afterany:$array" \
  "--output=$logs/merge_%j.log" "$root/vllm/scripts/sbatch_inference/merge_sbatch.sh" "$array" \
  "$save_path" --output "$save_path.json" \
  --action-label "$action_label" --actions-output "${save_path}_actions.json")
echo "describe: job $array, $chunks chunks; merge: job $merge; logs in $logs"

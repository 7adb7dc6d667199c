#!/usr/bin/env bash
# Generate the frames of a config on a Slurm cluster, a task a chunk:
#
#   bash sbatch_inference/submit.sh CONFIG CKPT [--chunks 8] [key=value ...]
#
# Options of the cluster (--account, --partition, --qos, --gpus, --time, --dry-run ...) stand in
# scripts/slurm.sh. Logs: logs/out. A chunk that failed is named by `squeue` and its log; submitting
# again makes what is missing only.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/slurm.sh"
chunks=${CHUNKS:-8}
words=()
while [ $# -gt 0 ]; do
  case $1 in
    --chunks) [ $# -ge 2 ] || fail "--chunks needs a value"; chunks=$2; shift 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
[ "${#words[@]}" -ge 2 ] || fail "usage: submit.sh CONFIG CKPT [--chunks 8] [key=value ...]"
absent=()
for path in "${words[@]:0:2}"; do [ -f "$path" ] || absent+=("$path"); done
[ "${#absent[@]}" = 0 ] || fail "no such file: ${absent[*]}"
[[ $chunks =~ ^[1-9][0-9]*$ ]] || fail "--chunks $chunks: expected a number from 1"
config=$(realpath "${words[0]}") ckpt=$(realpath -s "${words[1]}")
logs="$root/logs/out"
mkdir -p "$logs"
export LEGO_ROOT="$root"
array=$(submit --job-name=lego-generate "--array=1-$chunks" "--output=$logs/generate_%A_%a.log" \
  "$root/sbatch_inference/generate_sbatch.sh" --config "$config" --ckpt "$ckpt" --n_chunk "$chunks" \
  "${words[@]:2}")
echo "generate: job $array, $chunks chunks; logs in $logs"

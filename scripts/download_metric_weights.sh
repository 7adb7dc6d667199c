#!/usr/bin/env bash
# The weights of the metrics, into one flat folder (default: metrics/weights).
#   bash scripts/download_metric_weights.sh [FOLDER] [--only NAME ...] [--dry-run] [--verify]
# The two EgoVLP files have no lasting address: give one in EGOVLP_URL (egovlp.pth, for Ego4D) and
# EPIC_MIR_PLUS_URL (epic_mir_plus.pth, for Epic-Kitchens), or put the files there by hand. They come
# from https://github.com/showlab/EgoVLP. HF_ENDPOINT replaces https://huggingface.co.
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# = 0 ] || [ "${1#-}" != "$1" ]; then set -- "$root/metrics/weights" "$@"; fi
exec bash "$root/scripts/download.sh" metric_weights "$@"

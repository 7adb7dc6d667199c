#!/usr/bin/env bash
# The weights of the metrics, into one flat folder (default: metrics/weights).
#   bash scripts/download_metric_weights.sh [FOLDER] [--source hub|dropbox] [--only NAME ...] [--dry-run] [--verify]
# EgoVLP's two files and the tokenizers come from the hub with either source.
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# = 0 ] || [ "${1#-}" != "$1" ]; then set -- "$root/metrics/weights" "$@"; fi
exec bash "$root/scripts/download.sh" metric_weights "$@"

#!/usr/bin/env bash
# Stage 1's features of both datasets, 500 GB (default FOLDER: LEGO_FEATURES of settings.env).
#   bash scripts/download_vllm_features.sh [FOLDER] [--source hub|dropbox] [--only NAME ...] [--dry-run] [--verify]
exec bash "$(dirname "$0")/download.sh" vllm_features "$@"

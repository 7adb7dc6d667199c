#!/usr/bin/env bash
# The curated descriptions that stage 1 is tuned on (default FOLDER: LEGO_DATASET of settings.env).
#   bash scripts/download_gpt_curated_data.sh [FOLDER] [--source hub|dropbox] [--only NAME ...] [--dry-run] [--verify]
exec bash "$(dirname "$0")/download.sh" gpt_curated_data "$@"

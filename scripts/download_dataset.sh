#!/usr/bin/env bash
# The frames and action files of both datasets (default FOLDER: LEGO_DATASET of settings.env).
#   bash scripts/download_dataset.sh [FOLDER] [--source hub|dropbox] [--only NAME ...] [--dry-run] [--verify]
exec bash "$(dirname "$0")/download.sh" dataset "$@"

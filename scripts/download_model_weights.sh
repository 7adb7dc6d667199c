#!/usr/bin/env bash
# The released weights of both stages, and those that training starts from (default FOLDER: LEGO_WEIGHTS of settings.env).
#   bash scripts/download_model_weights.sh [FOLDER] [--source hub|dropbox] [--only NAME ...] [--dry-run] [--verify]
exec bash "$(dirname "$0")/download.sh" model_weights "$@"

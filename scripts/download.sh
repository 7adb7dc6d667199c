#!/usr/bin/env bash
# Fetch one group of what the project releases (egogen/download/manifest.json lists all links):
#
#   bash scripts/download.sh GROUP [FOLDER] [--source hub|dropbox] [--only NAME ...] [--dry-run] [--verify]
#
# The same command continues a stopped download and skips what is finished.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/scripts/settings.sh"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$(project_python)" -m egogen.download "$@"

#!/usr/bin/env bash
# The mini run at the size that the figures in README were measured at (runs/full, up to an hour).
#   bash scripts/full_mini.sh [--seed 1 --out runs/full1]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
exec .venv/bin/python mini/run.py full "$@"

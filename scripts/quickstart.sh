#!/usr/bin/env bash
# From nothing to a report of generated frames: makes .venv, then runs both stages on a small rendered
# dataset (runs/quickstart). The same command again does no finished work twice.
#   bash scripts/quickstart.sh [--seed 1 --out runs/quick1]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
exec .venv/bin/python mini/run.py quick "$@"

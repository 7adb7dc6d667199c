#!/usr/bin/env bash
# From nothing to a report of generated frames: makes .venv, then runs both stages on a small rendered
# dataset (runs/quickstart). The same command again does no finished work twice.
#   bash scripts/quickstart.sh [--seed 1 --out runs/quick1]
#   bash scripts/quickstart.sh tiny    # all of it in a few minutes, to see that it runs: nothing is learnt
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
[ "${1:-}" = tiny ] || set -- quick "$@"
exec .venv/bin/python mini/run.py "$@"

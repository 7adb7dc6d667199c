#!/usr/bin/env bash
# Make or reuse .venv, install what is missing, run the tests. Arguments go to pytest:
#   bash scripts/test.sh            # the default suite
#   bash scripts/test.sh -m slow    # full-size and long runs
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq && apt-get install -y -qq chromium >/dev/null  # the report's tests open it in a browser
fi
exec .venv/bin/python -m pytest "$@"

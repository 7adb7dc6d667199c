#!/usr/bin/env bash
# Style (ruff), types (mypy) and shell scripts (shellcheck) of the whole project, in about two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
debian_packages shellcheck:shellcheck
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy egogen ldm lego metrics mini vllm/llava
if command -v shellcheck >/dev/null; then
  git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck -x
else
  echo "note: shellcheck is not installed: the shell scripts were not checked" >&2
fi

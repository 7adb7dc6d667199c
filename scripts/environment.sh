# shellcheck shell=bash
# Sourced by the other scripts: makes or reuses .venv and installs what is missing, at tested versions.
PYTHON=${PYTHON:-python3}
if [ ! -x .venv/bin/python ]; then
  "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1), expected Python 3.10 to 3.12 (set PYTHON=...)" >&2
    exit 2
  }
  "$PYTHON" -m venv .venv
fi
stamp=.venv/installed-$(cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
if [ ! -f "$stamp" ]; then
  echo "installing the project and its packages into .venv" >&2
  .venv/bin/python -m pip install -q -c constraints.txt -e ".[vllm,ldm,metrics,build,deepspeed,lora,dev]"
  touch "$stamp"
fi

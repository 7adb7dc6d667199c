# shellcheck shell=bash
# Sourced by the other scripts: makes or reuses .venv and installs what is missing, at tested versions.
# shellcheck shell=bash
PYTHON=${PYTHON:-python3}
if [ ! -x .venv/bin/python ]; then
  "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1), expected Python 3.11 or 3.12 (set PYTHON=...)" >&2
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

# debian_packages COMMAND:PACKAGE...: installs the packages whose commands are missing, where that can be done
debian_packages() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  if [ "${#missing[@]}" != 0 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq "${missing[@]}" >/dev/null
  fi
}

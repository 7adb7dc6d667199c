# shellcheck shell=bash
# Sourced by scripts.

: "${root:?}"  # the project's folder, which they set

project_python() {  # the interpreter: PYTHON, or the project's environment, or what is on the path
  if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"
  elif [ -x "$root/.venv/bin/python" ]; then echo "$root/.venv/bin/python"
  elif command -v python >/dev/null; then echo python
  else echo python3; fi
}

# from_settings DATASET SPLIT: where stage 1's files are by settings.env, as variables (those of
# egogen.settings.stage_1_paths); what is set already stays
from_settings() {
  local found line name
  found=$(PYTHONPATH="$root" "$(project_python)" -m egogen.settings "$1" "$2") || exit 2
  while IFS= read -r line; do
    name=${line%%=*}
    [[ $line =~ ^[A-Za-z_]+= ]] || continue
    [ -n "${!name:-}" ] || eval "$line"
  done <<< "$found"
}

# shellcheck shell=bash
# Sourced by the other scripts: makes or reuses .venv and installs what is missing, at tested versions.
# PYTHON=... names the interpreter; otherwise it is the first that fits of python3 and, the one that
# packages have known longest first, python3.11 to python3.14. Pip runs with -I and --no-user: packages
# of a PYTHONPATH (a cluster's modules) are no part of .venv, and nothing goes into the home folder.
expected="expected Python 3.11 to 3.14"
stop() { echo "error: $*" >&2; exit 2; }

# unfit PYTHON: what keeps it from being the project's interpreter; nothing where it fits
unfit() {
  "$1" -E -c 'import platform, sys, sysconfig
free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # hardly a package has wheels for it
if not (3, 11) <= sys.version_info[:2] <= (3, 14) or free:
    print("is %sPython %s" % ("the free-threaded " * free, platform.python_version()))' 2>/dev/null ||
    echo "does not run"
}

version_of() { "$1" -E -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

no_venv() {
  stop "$1 cannot make environments, expected its modules venv and ensurepip" \
    "(on Debian and Ubuntu: apt-get install python$(version_of "$1")-venv)"
}

# find_python: sets `python` to the interpreter that makes .venv
find_python() {
  local problem without_venv="" candidates=(python3 python3.11 python3.12 python3.13 python3.14)
  if [ -n "${PYTHON:-}" ]; then
    problem=$(unfit "$PYTHON")
    [ -z "$problem" ] || stop "PYTHON=$PYTHON $problem, $expected"
    candidates=("$PYTHON")
  fi
  for python in "${candidates[@]}"; do
    [ -z "$(unfit "$python")" ] || continue
    "$python" -E -c 'import ensurepip, venv' 2>/dev/null && return
    without_venv=${without_venv:-$python}
  done
  [ -z "$without_venv" ] || no_venv "$without_venv"
  stop "python3 $(unfit python3) and no python3.11 to python3.14 on the path does better," \
    "$expected (PYTHON=... names one that is elsewhere)"
}

if [ -e .venv/bin/python ] || [ -L .venv/bin/python ]; then
  problem=$(unfit .venv/bin/python)
  [ -z "$problem" ] || stop ".venv/bin/python $problem, $expected; remove .venv" \
    "(rm -r .venv) and the same command makes it anew"
  if [ -n "${PYTHON:-}" ]; then
    problem=$(unfit "$PYTHON")
    [ -z "$problem" ] || stop "PYTHON=$PYTHON $problem, $expected"
    [ "$(version_of "$PYTHON")" = "$(version_of .venv/bin/python)" ] ||
      stop "PYTHON=$PYTHON is Python $(version_of "$PYTHON"), .venv has $(version_of .venv/bin/python)," \
        "expected the same; remove .venv (rm -r .venv) and the same command makes it anew"
  fi
else
  find_python
  [ "$python" = "${PYTHON:-python3}" ] || echo "python3 $(unfit python3): $python makes .venv" >&2
  "$python" -I -m venv .venv
fi
# A folder that has been moved, or whose Python is another now, is installed anew.
stamp=.venv/installed-$({ version_of .venv/bin/python; pwd -P; cat pyproject.toml constraints.txt; } |
  cksum | tr ' ' '-')
if [ ! -f "$stamp" ]; then
  echo "installing the project and its packages into .venv (docs/setup.md: how to fetch less)" >&2
  rm -f .venv/installed-*
  .venv/bin/python -I -m pip --version >/dev/null 2>&1 ||
    .venv/bin/python -I -m ensurepip >/dev/null 2>&1 || no_venv .venv/bin/python
  words=(--no-user -c constraints.txt -e ".[vllm,ldm,metrics,build,curate,deepspeed,lora,demo,dev]")
  [ -t 2 ] || words+=(-q)  # a terminal sees how the downloads go
  mkdir -p .venv/tmp  # pip unpacks gigabytes: a small /tmp, or one in memory, has no room for them
  TMPDIR=${TMPDIR:-$PWD/.venv/tmp} .venv/bin/python -I -m pip install "${words[@]}" ||
    stop "pip could not install the packages (it says why above); the same command goes on"
  rm -rf .venv/tmp
  touch "$stamp"
fi

# debian_packages COMMAND:PACKAGE...: installs the packages whose commands are missing, where that can be
# done; the rest goes on without those that cannot be had
debian_packages() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  if [ "${#missing[@]}" != 0 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || true
    for pair in "${missing[@]}"; do
      apt-get install -y -qq "$pair" >/dev/null || echo "note: $pair could not be installed" >&2
    done
  fi
}

#!/usr/bin/env bash
# Make or reuse .venv, install what is missing, run the tests. Arguments go to pytest:
#   bash scripts/test.sh            # the default suite
#   bash scripts/test.sh -m slow    # full-size and long runs
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
missing=()
command -v chromium >/dev/null || missing+=(chromium)  # the report's tests open it in a browser
command -v zip >/dev/null || missing+=(zip)            # split archives
command -v sbatch >/dev/null || missing+=(slurm-wlm munge)  # the job scripts run on a Slurm of their own
if [ "${#missing[@]}" != 0 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq && apt-get install -y -qq "${missing[@]}" >/dev/null
fi
# Two processes of one thread each: threads of several processes would wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"

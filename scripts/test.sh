#!/usr/bin/env bash
# Make or reuse .venv, install what is missing, run the tests. Arguments go to pytest:
#   bash scripts/test.sh            # the default suite
#   bash scripts/test.sh -m slow    # full-size and long runs; writes docs/last_run.md
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
# A browser for the report, split archives, a Slurm of the tests' own for the job scripts, a bare Debian.
debian_packages chromium:chromium zip:zip sbatch:slurm-wlm munged:munge debootstrap:debootstrap
# Two processes of one thread each: threads of several processes would wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"

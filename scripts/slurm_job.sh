# Sourced by job files, on the node: runs the job's command so that preemption, the time limit and a
# requeue lose nothing. Slurm sends USR1 before the end (--signal=B:USR1@...): the command gets TERM,
# the job asks to be queued again, and the same command goes on where it stood.

job_python() {  # the interpreter: PYTHON, or the project's environment, or what is on the path
  if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"
  elif [ -x "$root/.venv/bin/python" ]; then echo "$root/.venv/bin/python"
  else echo python; fi
}

job_run() {
  "$@" &
  child=$!
  trap 'queue_again' USR1
  local code=0
  wait "$child" || code=$?
  trap - USR1
  return "$code"
}

queue_again() {
  local job=${SLURM_JOB_ID:?}
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
  echo "the end of the time is near: $job is queued again and goes on where it is"
  kill -TERM "$child" 2>/dev/null || true
  wait "$child" || true
  scontrol requeue "$job"
  sleep 60  # Slurm ends this attempt
  exit 1
}

# shellcheck shell=bash
# Sourced by job files, on the node: run the job's command so that preemption, the time limit and a
# requeue lose nothing. Slurm sends USR1 to the job's shell before the end (--signal=B:USR1@...).

source "${root:?}/scripts/settings.sh"

# A command whose finished work is on the disk at any time: it gets TERM, and the job is queued again.
job_run() {
  "$@" &
  child=$!
  trap 'queue_again' USR1
  local code=0
  wait "$child" || code=$?
  trap - USR1
  return "$code"
}

# A command (behind srun) that needs notice in time: it gets USR1, writes its checkpoint and queues
# the job again itself. srun passes USR1 on to its tasks; at TERM it would kill them.
job_run_warned() {
  "$@" &
  child=$!
  trap 'kill -USR1 "$child"' USR1
  local code=0
  while true; do
    wait "$child" && code=0 || code=$?
    kill -0 "$child" 2>/dev/null || break  # a signal ends the waiting, not the command
  done
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

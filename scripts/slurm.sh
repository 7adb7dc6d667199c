# shellcheck shell=bash
# Sourced by the scripts that submit jobs: options of the cluster, from the environment or the command
# line, and `submit`.
#
#   environment            argument          what sbatch gets
#   LEGO_ACCOUNT           --account A       --account
#   LEGO_PARTITION         --partition P     --partition
#   LEGO_QOS               --qos Q           --qos
#   LEGO_GPUS              --gpus N          --gpus-per-node (0: none is asked for)
#   LEGO_CPUS              --cpus N          --cpus-per-task
#   LEGO_MEM               --mem M           --mem
#   LEGO_TIME              --time T          --time
#   LEGO_NODES             --nodes N         --nodes (training)
#   LEGO_SBATCH            --sbatch "..."    further words for sbatch
#                          --dry-run         print what would be submitted

LEGO_GPUS=${LEGO_GPUS:-1} LEGO_CPUS=${LEGO_CPUS:-8} LEGO_NODES=${LEGO_NODES:-1}
dry_run=no
rest=()  # what is not the cluster's
fail() { echo "error: $*" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --account|--partition|--qos|--gpus|--cpus|--mem|--time|--nodes|--sbatch)
      [ $# -ge 2 ] || fail "$1 needs a value"
      name=${1#--}; export "LEGO_${name^^}=$2"; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    *) rest+=("$1"); shift ;;
  esac
done
set -- ${rest[@]+"${rest[@]}"}

# submit WORDS...: sbatch with the options above; prints the job's number
submit() {
  local line=(sbatch --parsable)
  [ -z "${LEGO_ACCOUNT:-}" ] || line+=("--account=$LEGO_ACCOUNT")
  [ -z "${LEGO_PARTITION:-}" ] || line+=("--partition=$LEGO_PARTITION")
  [ -z "${LEGO_QOS:-}" ] || line+=("--qos=$LEGO_QOS")
  [ "$LEGO_GPUS" = 0 ] || line+=("--gpus-per-node=$LEGO_GPUS")
  [ -z "${LEGO_MEM:-}" ] || line+=("--mem=$LEGO_MEM")
  [ -z "${LEGO_TIME:-}" ] || line+=("--time=$LEGO_TIME")
  line+=("--cpus-per-task=$LEGO_CPUS")
  # shellcheck disable=SC2206  # several words are meant to be several words
  [ -z "${LEGO_SBATCH:-}" ] || line+=($LEGO_SBATCH)
  line+=("$@")
  if [ "$dry_run" = yes ]; then
    printf '%q ' "${line[@]}" >&2; echo >&2
    echo DRY_RUN
    return 0
  fi
  command -v sbatch >/dev/null || fail "sbatch is not on the path: not a Slurm cluster?"
  local answer
  answer=$("${line[@]}")
  echo "${answer%%;*}"
}

# submit_training WHAT LOGS JOB_FILE WORDS...: one job with a process a GPU on all of its nodes
submit_training() {
  local what=$1 logs=$2 tasks=$LEGO_GPUS job
  shift 2
  [ "$tasks" != 0 ] || tasks=1
  mkdir -p "$logs"
  export LEGO_ROOT="${root:?}"  # the project's folder
  job=$(submit "--job-name=lego-$what" "--nodes=$LEGO_NODES" "--ntasks-per-node=$tasks" \
    "--output=$logs/${what}_%j.log" "$@")
  echo "$what: job $job on $LEGO_NODES nodes of $tasks processes; logs in $logs"
}

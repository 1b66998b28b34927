# shellcheck shell=bash
# Sourced by the batch files: the run's folder, where the nodes meet, and whether the job is to be continued.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The last run_dir counts, as in the program. Without one each job has its own.
run_dir=runs/slurm-$SLURM_JOB_ID
for argument in "$@"; do
  case $argument in
    run_dir=*) run_dir=${argument#*=} ;;
    resume= | resume=auto) ;;
    resume=*) fail "$argument: a batch job goes on with the run in its run_dir; give run_dir=${argument#*=} instead" ;;
  esac
done

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
((${#nodes[@]} > 0)) || fail "scontrol names no node of job $SLURM_JOB_ID"
export NNODES=${#nodes[@]}
export HEAD_NODE=${nodes[0]}
export HEAD_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node meet at ports of their own
export RDZV_ID=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
# Newer versions of srun do not take this from the job by themselves.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# SLURM sends SIGTERM here at a cancellation, and not at the warning before the time limit. bash heeds it when srun has ended, which leaves
# the ranks the time that SLURM gives them (KillWait, 30 s unless the site has set it), and does not continue what was cancelled.
trap 'exit 143' TERM
trap : USR1 # `scancel --full --signal=USR1` sends it here too: it is for the ranks

# requeue_unless_finished: after the ranks have ended well.
requeue_unless_finished() {
  if [[ -e $run_dir/summary.json ]]; then
    echo "job $SLURM_JOB_ID: finished, see $run_dir/summary.json"
  elif [[ -e $run_dir/checkpoints ]]; then
    echo "job $SLURM_JOB_ID: to be continued, the same job waits again"
    scontrol requeue "$SLURM_JOB_ID" ||
      fail "job $SLURM_JOB_ID was not queued again; unless SLURM has done so by itself, submit it again with run_dir=$run_dir to go on"
  else
    fail "the ranks ended well, but $run_dir holds no run; is it a folder that all nodes see?"
  fi
}

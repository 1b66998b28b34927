#!/usr/bin/env bash
# Train on several machines. Run the same line on each of them, in any order:
#
#   NNODES=2 HEAD_NODE=node1 launch/torchrun_nodes.sh --config configs/caltech101.yaml data.root=DATA run_dir=SHARED/run resume=auto
#
# All arguments go to pfedmma.train; run_dir must be a folder that all machines see. Besides RANKS_PER_NODE and VENV (see common.sh):
#   NNODES        how many machines
#   HEAD_NODE     name or address of one of them, by which the others reach it: the ranks meet there
#   HEAD_PORT     a free port on it (29400)
#   RDZV_ID       a word that is the same on all machines, another one for another run (pfedmma)
#   MAX_RESTARTS  so many times, if a rank has died, all ranks start anew (0); with resume=auto they go on from the newest checkpoint
#   NODE_RANK     0 on HEAD_NODE and not 0 elsewhere; needed only where a machine does not know that it goes by the name HEAD_NODE
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ -n ${NNODES:-} ]] || fail "NNODES is not set; give the number of machines"
[[ -n ${HEAD_NODE:-} ]] || fail "HEAD_NODE is not set; give the name or address of the machine where the ranks meet"
need torchrun
ranks=$(ranks_here)
options=(
  --nnodes="$NNODES"
  --nproc_per_node="$ranks"
  --max-restarts="${MAX_RESTARTS:-0}"
  --rdzv-backend=c10d
  --rdzv-endpoint="$HEAD_NODE:${HEAD_PORT:-29400}"
  --rdzv-id="${RDZV_ID:-pfedmma}"
)
if [[ -n ${NODE_RANK:-} ]]; then
  options+=(--rdzv-conf="is_host=$((NODE_RANK == 0))")
fi
exec torchrun "${options[@]}" -m pfedmma.train "$@"

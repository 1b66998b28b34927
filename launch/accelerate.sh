#!/usr/bin/env bash
# Train by accelerate's launcher with the settings in accelerate.yaml, on this machine or on several:
#
#   launch/accelerate.sh --config configs/caltech101.yaml data.root=DATA
#   NNODES=2 HEAD_NODE=node1 NODE_RANK=0 launch/accelerate.sh ... run_dir=SHARED/run    # and NODE_RANK=1 on the other machine
#
# All arguments go to pfedmma.train. Besides RANKS_PER_NODE and VENV (see common.sh):
#   NNODES        how many machines (1); run_dir must then be a folder that all of them see
#   HEAD_NODE     name or address of the machine with NODE_RANK=0, by which the others reach it
#   HEAD_PORT     a free port on it (29400; on a single machine any free one)
#   NODE_RANK     which of the machines this is, from 0
#   MAX_RESTARTS  so many times, if a rank has died, all ranks start anew (0); with resume=auto they go on from the newest checkpoint
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
source "$folder/common.sh"

# Not 0, which only newer versions of accelerate take for "any".
free_port() { python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

need accelerate
ranks=$(ranks_here)
nodes=${NNODES:-1}
options=(
  --config_file "$folder/accelerate.yaml"
  --num_machines "$nodes"
  --num_processes "$((nodes * ranks))"
  --max_restarts "${MAX_RESTARTS:-0}"
)
if ((nodes == 1)); then
  options+=(--main_process_port "${HEAD_PORT:-$(free_port)}")
else
  [[ -n ${HEAD_NODE:-} ]] || fail "HEAD_NODE is not set; give the name or address of the machine with NODE_RANK=0"
  [[ -n ${NODE_RANK:-} ]] || fail "NODE_RANK is not set; give each machine a number, from 0"
  options+=(
    --machine_rank "$NODE_RANK"
    --main_process_ip "$HEAD_NODE"
    --main_process_port "${HEAD_PORT:-29400}"
    --rdzv_backend c10d
    --rdzv_conf "is_host=$((NODE_RANK == 0))"
  )
fi
exec accelerate launch "${options[@]}" -m pfedmma.train "$@"

#!/usr/bin/env bash
# Train on this machine, a rank for each GPU:
#
#   launch/torchrun.sh --config configs/caltech101.yaml data.root=DATA
#
# All arguments go to pfedmma.train. RANKS_PER_NODE=4 starts as many ranks instead (see common.sh). SIGTERM or Ctrl-C lets the round finish
# and keeps it; torchrun itself then ends with a status other than 0. It waits 30 s for the ranks before it kills them, which newer versions
# of torch take from TORCH_ELASTIC_SHUTDOWN_TIMEOUT (seconds): set that if a round takes longer.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need torchrun
ranks=$(ranks_here)
exec torchrun --standalone --nproc_per_node="$ranks" -m pfedmma.train "$@"

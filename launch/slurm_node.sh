#!/usr/bin/env bash
# What `srun` starts once on each node: `slurm_node.sh LAUNCHER ARGUMENT...`. Here, and not before, the node's number and GPUs are known.
#
# SIGUSR1 and SIGTERM are passed on to the ranks, which finish their round, keep it and end with status 0; the launcher then ends with 0
# too. SLURM with cgroups signals only the first process of a task, which is this one; without them it signals all processes, and a rank
# takes what comes twice for one request. torchrun would die of SIGUSR1, so it is told to ignore it. After SIGTERM it would leave the ranks
# 30 s, which only newer versions of torch let one change; from here they have the time that SLURM leaves them.
set -uo pipefail

export NODE_RANK=$SLURM_NODEID
if [[ -z ${RANKS_PER_NODE:-} && ${SLURM_GPUS_ON_NODE:-0} != 0 ]]; then
  export RANKS_PER_NODE=$SLURM_GPUS_ON_NODE
fi

ask() { pkill "-$1" -P "$launcher"; }

trap '' USR1 # what is ignored here stays ignored in the launcher, and in the ranks until pfedmma.train listens
"$@" &
launcher=$!
trap 'ask USR1' USR1
trap 'ask TERM || kill -TERM "$launcher"' TERM # no ranks yet: it ends at once

while kill -0 "$launcher" 2>/dev/null; do
  wait "$launcher" # until it has ended, or a signal has come
done
wait "$launcher" # its status

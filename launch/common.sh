# shellcheck shell=bash
# Sourced by the scripts beside it. Two variables hold for all of them:
#   VENV            the virtual environment to use; without it, whatever `python` there is
#   RANKS_PER_NODE  how many ranks to start on this machine; without it one for each GPU, or a single one on a CPU

fail() {
  echo "error: $*" >&2
  exit 2
}

if [[ -n ${VENV:-} ]]; then
  [[ -x $VENV/bin/python ]] || fail "VENV=$VENV is no virtual environment (it has no bin/python); give the folder of one, or leave VENV out"
  PATH=$VENV/bin:$PATH
fi

# need PROGRAM: end with one sentence if it is not there.
need() {
  command -v "$1" >/dev/null || fail "$1 is not there; activate the environment that pfedmma is installed in, or set VENV to its folder"
}

# ranks_here: how many ranks this machine gets.
ranks_here() {
  local ranks=${RANKS_PER_NODE:-}
  # torch is asked, not nvidia-smi: it obeys CUDA_VISIBLE_DEVICES and knows other makes of GPUs.
  [[ -n $ranks ]] || ranks=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
  [[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "RANKS_PER_NODE must be a whole number from 1 on, not '$ranks'"
  echo "$ranks"
}

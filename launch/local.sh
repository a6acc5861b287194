#!/usr/bin/env bash
# Trains on all GPUs of this machine (or on its CPU), in one process: JAX takes every device it sees.
#
#   launch/local.sh pretrain --config configs/pretrain_unet.py --workdir runs/unet \
#     --config.data.stores="('stores/wu',)"
#
#   DRY_RUN=1 launch/local.sh ...        prints what would be run
#   CUDA_VISIBLE_DEVICES=0,1 launch/local.sh ...   takes some of the GPUs
#
# Ctrl-C or `kill -USR1` saves and ends with code 75; the same command continues.
set -euo pipefail
cd "$(dirname "$0")/.."

# CHANGE: the environment's command, where it is not the one that `make` sets up.
LSMFM="${LSMFM:-.venv/bin/lsmfm}"
# CHANGE: share of the GPU memory that JAX takes at its start; lower it where others use the GPU too.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
# How often a run that ended with code 75 (stopped by a signal) is started again: 0 leaves that to you.
RESTARTS="${RESTARTS:-0}"

if [[ $# -eq 0 ]]; then
  echo "usage: launch/local.sh pretrain|finetune --config FILE --workdir RUN [--config.key=value ...]" >&2
  exit 2
fi
if [[ -n "${DRY_RUN:-}" ]]; then
  printf '%q ' "$LSMFM" "$@"
  echo
  exit 0
fi
child=0
forward() { if [[ $child -ne 0 ]]; then kill -s "$1" "$child" 2>/dev/null || true; fi; }
trap 'RESTARTS=0; forward TERM' INT TERM
trap 'forward USR1' USR1
while true; do
  "$LSMFM" "$@" &
  child=$!
  code=0
  wait "$child" || code=$?
  # A trapped signal ends `wait` early: wait on for the run itself.
  while kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  if [[ $code -ne 75 || $RESTARTS -le 0 ]]; then
    exit "$code"
  fi
  RESTARTS=$((RESTARTS - 1))
done

#!/usr/bin/env bash
# Runs on every host of a Cloud TPU VM or pod slice; JAX finds the hosts by the TPU's metadata.
#
#   launch/tpu_pod.sh create                 makes the slice
#   launch/tpu_pod.sh install                copies this checkout to every host and installs it
#   launch/tpu_pod.sh run pretrain --config configs/pretrain_unet.py --workdir /mnt/lsmfm/runs/unet \
#     --config.data.stores="('/mnt/lsmfm/stores/wu',)" --config.mesh.fsdp=8
#   launch/tpu_pod.sh stop                   saves and ends the run (code 75); `run` continues it
#   launch/tpu_pod.sh delete
#
#   DRY_RUN=1 launch/tpu_pod.sh ...          prints the commands
set -euo pipefail
cd "$(dirname "$0")/.."

# CHANGE: your project, the zone that has the accelerator, and a name.
PROJECT="${PROJECT:-my-project}"
ZONE="${ZONE:-us-west4-a}"
NAME="${NAME:-lsmfm}"
# CHANGE: the slice (v5litepod-64: 64 chips on 16 hosts) and the image that goes with it.
ACCELERATOR="${ACCELERATOR:-v5litepod-64}"
IMAGE="${IMAGE:-v2-alpha-tpuv5-lite}"
# CHANGE: SPOT=1 takes machines that may be preempted: cheaper, and the run survives it.
SPOT="${SPOT:-}"
# CHANGE: a disk or bucket that all hosts mount at the same path; stores and run folders must lie there.
MOUNT="${MOUNT:-/mnt/lsmfm}"

# Runs a command, or prints it.
do_or_say() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
place=(--project="$PROJECT" --zone="$ZONE")
everywhere() { do_or_say gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all --command="$1"; }

action="${1:-}"
[[ $# -gt 0 ]] && shift
case "$action" in
  create)
    spot=()
    if [[ -n "$SPOT" ]]; then spot=(--spot); fi
    do_or_say gcloud compute tpus tpu-vm create "$NAME" "${place[@]}" --accelerator-type="$ACCELERATOR" \
      --version="$IMAGE" "${spot[@]}"
    ;;
  install)
    archive="$(mktemp -u)/lsmfm_jax.tar.gz"
    do_or_say mkdir -p "$(dirname "$archive")"
    do_or_say git archive --format=tar.gz --prefix=lsmfm_jax/ --output="$archive" HEAD
    do_or_say gcloud compute tpus tpu-vm scp "$archive" "$NAME:lsmfm_jax.tar.gz" "${place[@]}" --worker=all
    everywhere "tar -xzf lsmfm_jax.tar.gz && python3 -m venv venv && venv/bin/pip install --quiet './lsmfm_jax[tpu]'"
    ;;
  run)
    if [[ $# -eq 0 ]]; then
      echo "usage: launch/tpu_pod.sh run pretrain|finetune --config FILE --workdir $MOUNT/RUN [...]" >&2
      exit 2
    fi
    quoted="$(printf '%q ' "$@")"
    everywhere "cd lsmfm_jax && mountpoint -q $MOUNT && exec env LSMFM_COORDINATOR=auto ../venv/bin/lsmfm $quoted"
    ;;
  stop)
    # Every host gets the signal; they agree on the step. The bracket keeps pkill from finding its own shell.
    everywhere "pkill -USR1 -f '[v]env/bin/lsmfm'"
    ;;
  delete)
    do_or_say gcloud compute tpus tpu-vm delete "$NAME" "${place[@]}" --quiet
    ;;
  *)
    echo "usage: launch/tpu_pod.sh create|install|run|stop|delete" >&2
    exit 2
    ;;
esac

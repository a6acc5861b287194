#!/usr/bin/env bash
# Starts a run on GKE from launch/gke_jobset.yaml.
#
#   launch/gke.sh gpu pretrain --config configs/pretrain_unet.py --workdir /data/runs/unet \
#     --config.data.stores="('/data/stores/wu',)"
#   NODES=16 launch/gke.sh tpu pretrain ...
#
#   DRY_RUN=1 launch/gke.sh ...     prints the filled manifest and the command
#   kubectl delete jobset NAME      saves and ends the run; the same launch continues it
set -euo pipefail
cd "$(dirname "$0")/.."

# CHANGE: an image with this package installed, its working directory being the checkout.
IMAGE="${IMAGE:-REGION-docker.pkg.dev/PROJECT/REPOSITORY/lsmfm_jax:latest}"
# CHANGE: name of the JobSet; letters, digits and dashes.
NAME="${NAME:-lsmfm}"
# CHANGE: GPU nodes, or hosts of the TPU slice.
NODES="${NODES:-2}"

kind="${1:-}"
if [[ "$kind" != gpu && "$kind" != tpu ]] || [[ $# -lt 2 ]]; then
  echo "usage: launch/gke.sh gpu|tpu pretrain|finetune --config FILE --workdir /data/RUN [...]" >&2
  exit 2
fi
shift

# The arguments as a JSON list, which YAML reads as well.
arguments=""
for word in "$@"; do
  word="${word//\\/\\\\}"
  word="${word//\"/\\\"}"
  arguments+="${arguments:+, }\"$word\""
done

# The document that has the label; a document ends with ---.
document="$(awk -v label="lsmfm/accelerator: $kind}" 'BEGIN { RS = "---\n" } index($0, label) { print }' launch/gke_jobset.yaml)"
document="${document//@NAME@/$NAME}"
document="${document//@NODES@/$NODES}"
document="${document//@IMAGE@/$IMAGE}"
# Quoted, so that an & in an argument stays one.
document="${document//@ARGUMENTS@/"[$arguments]"}"

if [[ -n "${DRY_RUN:-}" ]]; then
  echo "$document"
  echo "kubectl apply -f -"
else
  kubectl apply -f - <<<"$document"
fi

#!/usr/bin/env bash
# Predicts one volume of any size on GKE from launch/predict_jobset.yaml: prepare, parts, merge.
#
#   PARTS=64 launch/predict_gke.sh --checkpoint /data/runs/segment /data/brain.ome.zarr --out /data/cells.ome.zarr
#
#   DRY_RUN=1 launch/predict_gke.sh ...     prints the filled manifest and the command
set -euo pipefail
cd "$(dirname "$0")/.."

# CHANGE: an image with this package installed.
IMAGE="${IMAGE:-REGION-docker.pkg.dev/PROJECT/REPOSITORY/lsmfm_jax:latest}"
# CHANGE: name of the JobSet; letters, digits and dashes.
NAME="${NAME:-lsmfm-predict}"
# CHANGE: how many parts, pods at a time, and the memory that one may use.
PARTS="${PARTS:-16}"
PARALLEL="${PARALLEL:-$PARTS}"
MAX_RAM="${MAX_RAM:-18G}"

out=""
words=("$@")
for ((i = 0; i < ${#words[@]}; i++)); do
  case "${words[i]}" in
    --out) out="${words[i + 1]:-}" ;;
    --out=*) out="${words[i]#--out=}" ;;
  esac
done
if [[ -z "$out" ]]; then
  echo "usage: launch/predict_gke.sh --checkpoint /data/RUN /data/VOLUME --out /data/RESULT.ome.zarr [...]" >&2
  exit 2
fi

# Arguments as a JSON list, which YAML reads as well.
list() {
  local text="" word
  for word in "$@"; do
    word="${word//\\/\\\\}"
    word="${word//\"/\\\"}"
    text+="${text:+, }\"$word\""
  done
  echo "[$text]"
}

document="$(<launch/predict_jobset.yaml)"
document="${document//@NAME@/$NAME}"
document="${document//@IMAGE@/$IMAGE}"
document="${document//@PARTS@/$PARTS}"
document="${document//@PARALLEL@/$PARALLEL}"
# Quoted, so that an & in an argument stays one.
document="${document//@PREPARE@/"$(list "$@" --max-ram "$MAX_RAM" --prepare --part "1/$PARTS")"}"
document="${document//@ARGUMENTS@/"$(list "$@" --max-ram "$MAX_RAM")"}"
document="${document//@MERGE@/"$(list --merge "$out" --max-ram "$MAX_RAM")"}"

if [[ -n "${DRY_RUN:-}" ]]; then
  echo "$document"
  echo "kubectl apply -f -"
else
  kubectl apply -f - <<<"$document"
fi

#!/usr/bin/env bash
# All benchmarks on one graphics card, in under nine minutes and without network; results as small JSON files.
#
#   benchmarks/run_gpu.sh                     with the Python that runs `lsmfm`
#   PYTHON=.venv-bench/bin/python benchmarks/run_gpu.sh
#   WHEELS=folder benchmarks/run_gpu.sh       packages that this Python lacks are installed from wheels in a folder,
#                                             into an environment of its own (see README.md for filling the folder)
#   LIMIT_S=540                               no benchmark starts or goes on beyond this many seconds
#
# What is most wanted comes first. One that fails or runs out of time leaves a .log beside the others' JSON.
set -u
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
LIMIT_S=${LIMIT_S:-530}
SECONDS=0

if [[ -n ${WHEELS:-} ]]; then
  environment=${TMPDIR:-/tmp}/lsmfm-bench-env
  "$PYTHON" -m venv --without-pip --system-site-packages "$environment" || exit 1
  # The packages of an environment are not those that its own environments see.
  base=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  own=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  printf '%s\n%s\n' "$base" "$PWD" > "$own/base.pth"
  "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$own" --upgrade "$WHEELS"/*.whl || exit 1
  PYTHON=$environment/bin/python
fi

device=$("$PYTHON" -c 'import jax; print(jax.devices()[0].device_kind)' | tail -n 1 | tr -c 'A-Za-z0-9\n' '-')
[[ -n $device ]] || { echo "run_gpu.sh: JAX found no device with $PYTHON" >&2; exit 1; }
out=${OUT_DIR:-benchmarks/results/$device}
mkdir -p "$out"
# Compiled programs are kept, so that the same step in the next benchmark starts at once.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/lsmfm-bench-cache}
export TF_CPP_MIN_LOG_LEVEL=2
failed=0

# measure NAME SECONDS BENCHMARK ARGUMENTS...: one JSON file; skipped where the time left is less than ten seconds.
measure() {
  local name=$1 limit=$2 benchmark=$3 left=$((LIMIT_S - SECONDS))
  shift 3
  ((left < limit)) && limit=$left
  if ((limit < 10)); then
    echo "$name: no time left" | tee "$out/$name.log"
    failed=1
    return
  fi
  local start=$SECONDS
  if timeout "$limit" "$PYTHON" "benchmarks/$benchmark.py" "$@" --json "$out/$name.json" > "$out/$name.log" 2>&1; then
    rm "$out/$name.log"
    echo "$name: done in $((SECONDS - start)) s"
  else
    echo "$name: failed or out of time after $((SECONDS - start)) s; see $out/$name.log"
    failed=1
  fi
}

measure step_unet 110 step_dummy_data --model unet --batch 32 --steps 5
measure step_swin_unetr 110 step_dummy_data --model swin_unetr --batch 16 --steps 5
# Hand-written kernels, run on no card yet: do they give the same numbers, and are they quicker?
for model in unet swin_unetr; do
  measure "distillation_$model" 45 distillation --model "$model" --batch 8
done
measure step_unet_fused 60 step_dummy_data --model unet --batch 32 --steps 5 --kernels fused
measure step_swin_unetr_fused 60 step_dummy_data --model swin_unetr --batch 16 --steps 5 --kernels fused
measure vs_torch_swin_unetr 170 vs_torch --model swin_unetr --batch 8 --steps 5 --search 1 4 16
measure vs_torch_unet 170 vs_torch --model unet --batch 16 --steps 5 --search 1 4 32
measure step_real_unet 60 step_real_data --model unet --batch 32 --patches 32 --steps 5
measure loader 30 loader_only --batch 32 --patches 32 --steps 3 --batches-each 16
measure tail 60 tail --batch 2 --steps 5
for model in unet swin_unetr; do
  [[ -f $out/step_$model.json ]] && measure "paper_run_$model" 15 project_paper_run "$out/step_$model.json"
done
echo "$SECONDS s; results in $out"
exit "$failed"

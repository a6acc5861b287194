#!/usr/bin/env bash
# Builds the wheel of the tracked files, installs it into a fresh environment outside the clone, and there, in an
# empty folder, pretrains, finetunes and predicts for a few steps. PYTHON=python3.12 picks another interpreter.
set -euo pipefail
clone="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# Neither the clone nor what a caller's shell points to may be found by the installed package.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

fail() {
  echo "wheel check: $*" >&2
  exit 1
}

mkdir "$work/source" "$work/empty"
(cd "$clone" && git ls-files -z | tar --create --null --files-from=- --file=-) | tar --extract --directory="$work/source"
"${PYTHON:-python3}" -m venv "$work/venv"
bin="$work/venv/bin"
"$bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" "$work/source"

files="$("$bin/python" -m zipfile --list "$work"/wheel/lsmfm_jax-*.whl | awk '{print $1}')"
grep -qx lsmfm_jax/py.typed <<<"$files" || fail "no py.typed in the wheel"
for recipe in "$clone"/configs/*.py "$clone"/configs/{experiments,sweeps}/*.py "$clone"/configs/experiments/tools/*.toml; do
  grep -qx "lsmfm_jax/recipes/${recipe#"$clone"/configs/}" <<<"$files" || fail "$(basename "$recipe") is not in the wheel"
done
for part in index.html ranking.css voxels.js pictures.js progress.js ranking.js; do
  grep -qx "lsmfm_jax/ranking/page/$part" <<<"$files" || fail "$part of the ranking page is not in the wheel"
done
if others="$(grep -vE '^(File|lsmfm_jax/|lsmfm_jax-[^/]*\.dist-info/)' <<<"$files")"; then
  fail "the wheel holds more than the package: $others"
fi

"$bin/python" -m pip install --quiet "$work"/wheel/lsmfm_jax-*.whl
cd "$work/empty"
# Not in a pipe: grep leaves at the first match, and what is written to it after that is an error.
"$bin/lsmfm" recipes >recipes.txt
grep -q "^pretrain_unet " recipes.txt || fail "lsmfm recipes does not list pretrain_unet"
"$bin/lsmfm" experiment table1 --workdir nowhere --dry-run >cells.txt
grep -q "^1368 cells" cells.txt || fail "lsmfm experiment does not count the cells of table1"
if "$bin/lsmfm" bench tail 2>bench.txt; then fail "lsmfm bench ran without its scripts"; fi
grep -q "clone the repository" bench.txt || fail "lsmfm bench does not say what to do: $(cat bench.txt)"

train=(--config.train.batch_size=4 --config.train.epochs=2 --config.train.tensorboard=False)
"$bin/lsmfm" data phantom --out patches --count 10 --size 48,48,48 --layout selma --seed 1
"$bin/lsmfm" data ingest --layout selma --root patches --captions patches/captions.json --out store
timeout 900 "$bin/lsmfm" pretrain --config pretrain_unet:tiny --workdir pretrained \
  --config.data.stores="('store',)" "${train[@]}"
"$bin/lsmfm" data phantom --out all --count 15 --size 32,32,32 --layout flat --seed 7
mkdir annotated && mv all/nuclei_* annotated/
timeout 900 "$bin/lsmfm" finetune --config segment_unet:tiny --workdir finetuned \
  --config.data.folder=annotated --config.init_from=pretrained "${train[@]}"
timeout 900 "$bin/lsmfm" predict --checkpoint finetuned annotated --out predictions
compgen -G "predictions/*_mask.nii.gz" >/dev/null || fail "predict wrote no mask"
"$bin/lsmfm" evaluate --pred predictions --label annotated --out scores.csv >/dev/null
echo "wheel check: the installed package pretrains, finetunes, predicts and evaluates by itself"

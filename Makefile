# Everything sets itself up: only git, make and Python 3.11 or newer are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Pretraining on your own patches: make pretrain DATA=folder LAYOUT=wu CAPTIONS=captions.json CONFIG=configs/...
DATA ?= runs/phantom/patches
LAYOUT ?= selma
CAPTIONS ?= $(DATA)/captions.json
CONFIG ?= configs/pretrain_unet.py:tiny
RUN ?= runs/pretrain
STORE ?= $(RUN)-store
# Any key of the configuration: OVERRIDES="--config.train.epochs=2"
OVERRIDES ?=
# A captions file that was named must be there; the usual one may be missing: then the store is image-only.
captions_flag = $(if $(filter command environment,$(origin CAPTIONS)),--captions $(CAPTIONS),\
  $$(test -e $(CAPTIONS) && echo --captions $(CAPTIONS)))

.PHONY: pretrain finetune test soak sharding-tables parity docs lint clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

.venv-parity/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --upgrade pip
	.venv-parity/bin/python -m pip install --quiet torch==2.13.0
	.venv-parity/bin/python -m pip install --quiet monai==1.6.1 einops ome-zarr-models==1.7 bioimageio.spec==0.5.12.0 \
	  bioimageio.core==0.11.0 --editable '.[test]'
	touch $@

runs/phantom/patches: | $(VENV)/.ready
	$(BIN)/lsmfm data phantom --out $@.tmp --count 50 --size 48,48,48 --layout selma --seed 1
	mv $@.tmp $@

pretrain: $(VENV)/.ready $(if $(filter runs/phantom/patches,$(DATA)),runs/phantom/patches)
	$(BIN)/lsmfm data ingest --layout $(LAYOUT) --root $(DATA) --out $(STORE) $(captions_flag)
	$(BIN)/lsmfm data info $(STORE)
	$(BIN)/lsmfm pretrain --config $(CONFIG) --workdir $(RUN) --config.data.stores="('$(STORE)',)" $(OVERRIDES)

# Twenty kills and 200 flipped bits; `SOAK_SEED=N` draws other moments.
soak: $(VENV)/.ready
	LSMFM_SOAK_KILLS=20 LSMFM_SOAK_FLIPS=200 LSMFM_SOAK_SEED=$(or $(SOAK_SEED),0) \
	  $(BIN)/python -m pytest -s tests/test_survive.py tests/test_brain_kill.py

# After a wanted change of how parameters are split over devices.
sharding-tables: $(VENV)/.ready
	PYTHONPATH=tests JAX_PLATFORMS=cpu $(BIN)/python tests/sharding_tables.py

# Five annotated patches of nuclei to learn from, five of other brains to be judged on.
FINETUNE_RUN ?= runs/finetune
FINETUNE_CONFIG ?= configs/segment_unet.py:tiny

runs/phantom/annotated runs/phantom/unseen: | $(VENV)/.ready
	$(BIN)/lsmfm data phantom --out $@.all --count 25 --size 48,48,48 --layout flat \
	  --seed $(if $(filter %unseen,$@),8,7)
	mkdir -p $@.tmp && mv $@.all/nuclei_* $@.tmp/ && rm -r $@.all && mv $@.tmp $@

$(RUN)/best:
	$(MAKE) pretrain

finetune: $(VENV)/.ready $(RUN)/best runs/phantom/annotated runs/phantom/unseen
	$(BIN)/lsmfm finetune --config $(FINETUNE_CONFIG) --workdir $(FINETUNE_RUN) \
	  --config.data.folder=runs/phantom/annotated --config.init_from=$(RUN)
	$(BIN)/lsmfm predict --checkpoint $(FINETUNE_RUN) runs/phantom/unseen --out $(FINETUNE_RUN)/predictions --overwrite
	$(BIN)/lsmfm evaluate --pred $(FINETUNE_RUN)/predictions --label runs/phantom/unseen \
	  --out $(FINETUNE_RUN)/scores.csv
	@echo "masks and pictures: $(FINETUNE_RUN)/predictions   table: $(FINETUNE_RUN)/scores.csv"

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=15

parity: .venv-parity/.ready
	# A process for each file, one after another: PyTorch, MONAI and ours side by side take over 10 GB at times.
	set -e; for file in tests/parity/test_*.py; do .venv-parity/bin/python -m pytest -o addopts="-q" $$file; done

# The documentation as a website in runs/docs; needs no other part of the package.
docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "open runs/docs/index.html"

.venv-docs/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet "mkdocs-material>=9.5" "mkdocstrings[python]>=0.26"
	touch $@

lint: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs .venv .venv-parity .venv-docs .venv-bench .venv-compile .venv-tpu .pytest_cache .ruff_cache

# What a machine with a card and JAX lacks, as wheels, where it has no network: for WHEELS of benchmarks/run_gpu.sh.
BUNDLE ?= grain array_record portpicker ml_collections nibabel tensorboardX connected-components-3d monai==1.6.1 einops \
  beartype jaxtyping
BUNDLE_PYTHON ?= 3.12
.PHONY: gpu-bundle
gpu-bundle:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version $(BUNDLE_PYTHON) \
	  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest runs/gpu_bundle $(BUNDLE)
	@du -sh runs/gpu_bundle

# Both JAX and PyTorch, for benchmarks/vs_torch.py; where pip finds builds with CUDA, for graphics cards as well.
.PHONY: bench-env bench-compile-env
bench-env: .venv-bench/.ready
.venv-bench/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --upgrade pip
	.venv-bench/bin/python -m pip install --quiet torch==2.13.0
	.venv-bench/bin/python -m pip install --quiet monai==1.6.1 einops --editable .
	touch $@

# JAX's compiler for NVIDIA cards, for benchmarks/compile_only.py; no card and no CUDA libraries are needed.
CUDA ?= 12
bench-compile-env: .venv-compile/.ready-cuda$(CUDA)
# A stamp for each version, and an environment anew for another one: two plug-ins in it would both be loaded.
.venv-compile/.ready-cuda$(CUDA): pyproject.toml
	$(PYTHON) -m venv --clear .venv-compile
	.venv-compile/bin/python -m pip install --quiet --upgrade pip
	.venv-compile/bin/python -m pip install --quiet --editable .
	version=$$(.venv-compile/bin/python -c 'import importlib.metadata as m; print(m.version("jaxlib"))'); \
	  .venv-compile/bin/python -m pip install --quiet --no-deps jax-cuda$(CUDA)-plugin==$$version jax-cuda$(CUDA)-pjrt==$$version
	touch $@

# libtpu, the compiler for TPUs, for benchmarks/compile_only.py --target tpu-v5e; no TPU is needed.
.PHONY: bench-tpu-env
bench-tpu-env: .venv-tpu/.ready
.venv-tpu/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --upgrade pip
	.venv-tpu/bin/python -m pip install --quiet --editable '.[tpu,test]'
	touch $@

# Every target does its own set-up. PYTHON picks the interpreter, and with it the Megatron-Core generation:
#   make test                     Python 3.11, megatron-core 0.16.1
#   make test PYTHON=python3.12   Python 3.12, megatron-core 0.19.2
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TAG    := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifeq ($(filter clean,$(MAKECMDGOALS)),)
ifeq ($(TAG),)
# A version manager leaves names behind that start nothing.
$(error PYTHON=$(PYTHON) does not start; name one that does, such as PYTHON=/usr/bin/python3.11)
endif
ifneq ($(shell $(PYTHON) -c 'import sys; print(sys.version_info >= (3, 11))'),True)
$(error PYTHON=$(PYTHON) is Python $(TAG); 3.11 or newer is needed)
endif
endif
VENV   := .venv/$(TAG)
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A GPU container brings its own torch: use it instead of installing another one.
CUDA   := $(shell $(PYTHON) -c 'import torch; print(torch.version.cuda or "")' 2>/dev/null)

.PHONY: setup train test generation lint bench gpu soak wheel docs clean
setup: $(READY)

$(READY): pyproject.toml constraints/cpu.txt
ifeq ($(CUDA),)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints/cpu.txt -e '.[train,test,dev,docs]'
else
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[train,test,dev,docs]'
endif
	touch $@

train: $(READY)
	$(BIN)/hcmegatron train configs/quickstart.yaml

# Two processes share the test files out; then, alone, what measures time or needs the GPU. A process that a hanging
# test has ended is not replaced: the new one would begin with the same test.
SHARED := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
test: $(READY)
	$(BIN)/python -m pytest $(SHARED) -m 'not alone and not cuda'; others=$$?; \
	$(BIN)/python -m pytest -m 'alone or cuda' && exit $$others

# What Megatron-Core's version can break, for the generation that CI does not test (docs/limits.md):
#   make generation PYTHON=python3.12
GENERATION ?= tests/layouts tests/model tests/pipeline tests/platform/test_versions.py tests/platform/test_optional.py \
	tests/platform/test_adam.py tests/training/test_resharding.py tests/training/test_optimizer.py \
	tests/training/test_precision.py tests/training/test_saving.py tests/evaluate/test_generation.py
generation: $(READY)
	$(BIN)/python -m pytest $(SHARED) -m 'not alone and not cuda and not slow' $(GENERATION)

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m tools.bench $(BENCH)

# What only a GPU can show, in ten minutes; in miniature where there is none (docs/gpu.md). A GPU machine's own Python
# is used as it is, with nothing installed. GPU='--phases kernels tiles' passes arguments on.
ifeq ($(CUDA),)
gpu: $(READY)
	$(BIN)/python -m tools.gpu_check $(GPU)
else
gpu:
	$(PYTHON) -m tools.gpu_check $(GPU)
endif

# Random configurations for twenty minutes; what failed is repeated with --case (python -m tests.fuzz --help). Then
# races between streams, over a table of variants and controls (python -m tests.races --help); a run that is repeated
# goes on where the one before ended. Then runs whose processes are killed, which another call adds to, and a study.
SEEDS   ?= 0:200
MINUTES ?= 20
soak: $(READY)
	SOAK=1 $(BIN)/python -m pytest -q tests/training/test_balancing.py tests/launch/test_slurm.py \
		tests/launch/test_slurm_jobs.py tests/launch/test_slurm_doctor.py
	$(BIN)/python -m tests.fuzz --seeds $(SEEDS) --minutes $(MINUTES) --out bench_out/fuzz
	$(BIN)/python -m tests.races --minutes $(MINUTES) --out bench_out/races
	$(BIN)/python -m tools.kill_storm --minutes $(MINUTES) --folder bench_out/storm
	$(BIN)/python -m tools.study_storm --folder bench_out/study_storm

# What pip installs: dist/hcmegatron-VERSION-py3-none-any.whl.
wheel: $(READY)
	$(BIN)/pip wheel -q --disable-pip-version-check --no-deps -w dist .

# The site of docs/, in site/; a link that leads nowhere fails.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

clean:
	rm -rf .venv build dist site *.egg-info

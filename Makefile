# Two commands do everything on a fresh machine: `make evolve` and `make test`. The rest is for people who work on it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PRESET ?= small
GOLDEN ?= tests/golden
DEVICE ?= cpu

.DEFAULT_GOAL := help
.PHONY: help setup evolve evolve-stages evolve-long test test-slow lint format conformance bench train-small-llama clean browser kernels

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(STAMP) ## Create .venv and install everything, pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

browser: ## Install the browser that the tests look at pages with, where apt-get is and may
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && echo "there is one" || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core; }

# Not among the constraints: torch's CUDA builds name the Triton that they need, its CPU builds none.
kernels: setup ## Install Triton where torch brought none, so that the tests interpret its kernels
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps triton==3.7.1

evolve: setup ## Evolve a memory on the small Llama with two local workers (about three minutes)
	$(BIN)/namm evolve $(PRESET)

evolve-stages: setup ## The paper's three stages on made-up LongBench files (minutes)
	$(BIN)/namm tasks generate longbench --to runs/tasks --words --model small-llama --rows 64
	NAMM_TASKS=runs/tasks $(BIN)/namm evolve small-stages

evolve-long: setup ## The README's table: three seeds of the longer preset (six minutes on two cores)
	$(BIN)/python -m tests.benchmarks.seeds --preset small-long --seeds 0 1 2

test: setup lint ## Lint, types, tests that take seconds (under ten minutes in all)
	$(BIN)/python -m pytest

test-slow: setup ## The tests that start clusters and servers, or take long
	$(BIN)/python -m pytest -m 'slow or cluster'

lint: setup ## Lint, format and type checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

conformance: setup ## Compare with golden data of the published implementation: make conformance GOLDEN=folder DEVICE=cuda
	@$(BIN)/python -m tests.conformance $(GOLDEN) $(DEVICE)

bench: setup ## Benchmarks of the parts
	$(BIN)/python -m tests.benchmarks.bench_block
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.bench_memory
	$(BIN)/python -m tests.benchmarks.bench_store
	$(BIN)/python -m tests.benchmarks.bench_dispatch
	$(BIN)/python -m tests.benchmarks.bench_fleet
	$(BIN)/python -m tests.benchmarks.bench_resume
	$(BIN)/python -m tests.benchmarks.bench_submit
	$(BIN)/python -m tests.benchmarks.bench_import
	$(BIN)/python -m tests.benchmarks.bench_tasks
	$(BIN)/python -m tests.benchmarks.bench_architectures
	$(BIN)/python -m tests.benchmarks.bench_query

train-small-llama: setup ## Train the model in workers/models/small-llama again
	$(BIN)/python -m workers.training --out workers/models/small-llama

clean: ## Remove what the commands above have made, but for runs/
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

# Every target works on a machine that has only Python >= 3.11 and make; the first one makes .venv for all of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PART ?=
# tests run in parallel, one thread each: two 2-thread jobs on 2 cores slow each other many times over
WORKERS ?= auto

.PHONY: help demo test test-slow test-gpu test-cluster test-browser lint docs format bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ \t/'

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

demo: $(INSTALLED)  ## distil the embedded data set and evaluate the result
	$(BIN)/dd run method=datm ipc=1

test: $(INSTALLED)  ## all tests that need no GPU, no network, no data outside this repository
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

test-gpu: $(INSTALLED)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

$(VENV)/.cluster: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[slurm,ray,s3]' --group cluster
	touch $@

test-cluster: $(VENV)/.cluster  ## the tests that start Slurm (Debian, as root: apt-get install slurm-wlm munge), Ray and an S3 server
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m cluster tests/cluster

test-browser: $(INSTALLED)  ## the tests that open a page in headless Chromium (Debian: apt-get install chromium)
	$(BIN)/python -m pytest -q -m browser tests/e2e/test_report_browser.py

lint: $(INSTALLED)  ## ruff, pyright, codespell, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

docs: $(VENV)/.docs  ## build the pages into build/site; a dead link or a missing name fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --config-file docs/mkdocs.yml

format: $(INSTALLED)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## speed and memory against plain reference implementations; PART=training|experts|iteration|where|memory|evaluation|distribution|loader|sets|decoupled|processes
	$(BIN)/python experiments/benchmarks/run.py $(PART)

clean:  ## remove the environment and what tests leave
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info

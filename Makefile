# Everything starts from a clean clone with Python >= 3.10, a C++ compiler, make and PyPI.
# `make test`, `make sudoku`: set up what they need by themselves.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
STAMP  := $(VENV)/.stamp-dev
BENCH_VENV  := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.stamp
# cmake and ninja come from PyPI with the dev extra; a system need not have them.
CMAKE  := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cmake
ARGS   ?=
# BLAS and OpenMP threads beside several test processes only get in each other's way.
ONE    := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup core test test-slow test-torch lint format types sudoku paper bench bench-setup bench-sparse bench-families docs docs-serve \
        notebooks wheel sanitize fuzz gpu clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# --- environment ---------------------------------------------------------------------------------------------------

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first, with its constraint, so that nothing else chooses a version. The core is left to `make core`.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -C wheel.cmake=false -e '.[dev]'
	touch $@

setup: $(STAMP)  ## .venv with the package (editable) and every tool

core: $(STAMP)  ## rebuild the compiled core into src/optlayer/lib
	$(CMAKE) -S . -B build/core -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	$(CMAKE) --build build/core

# --- checks --------------------------------------------------------------------------------------------------------

# The core is rebuilt when its sources are newer; cmake knows. A test that hangs fails, and the others still run.
PYTEST := $(ONE) $(BIN)/python -m pytest -q -n 2 --timeout 300
test: $(STAMP) core  ## the test suite, two processes
	$(PYTEST) -m 'not slow' $(ARGS)

test-slow: $(STAMP) core  ## the tests that take minutes
	$(PYTEST) -m slow $(ARGS)

TORCH ?= 2.6.0
test-torch: core  ## the tests that need little else, with another torch: make test-torch TORCH=2.6.0
	test -d .venv-torch-$(TORCH) || $(PYTHON) -m venv .venv-torch-$(TORCH)
	.venv-torch-$(TORCH)/bin/python -m pip install -q torch==$(TORCH) -C wheel.cmake=false -e '.[test]'
	$(ONE) .venv-torch-$(TORCH)/bin/python -m pytest -q -m 'not slow' $(ARGS)

lint: $(STAMP)  ## ruff: style and formatting rules
	$(BIN)/ruff check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

format: $(STAMP)  ## let ruff repair what it can
	$(BIN)/ruff check --fix .

sanitize: $(STAMP)  ## C++ tests (all teams) under the address and undefined-behaviour sanitizers, then thread
	$(CMAKE) -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Debug -DOPTLAYER_TESTS=ON -DOPTLAYER_SANITIZE=ON \
	  -DOPTLAYER_LIBRARIES=OFF >/dev/null
	$(CMAKE) --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure --parallel 2
	$(CMAKE) -S . -B build/races -G Ninja -DCMAKE_BUILD_TYPE=Debug -DOPTLAYER_TESTS=ON -DOPTLAYER_SANITIZE=ON \
	  -DOPTLAYER_SANITIZERS=thread -DOPTLAYER_LIBRARIES=OFF >/dev/null
	$(CMAKE) --build build/races --target threaded
	$(BIN)/ctest --test-dir build/races --output-on-failure --tests-regex 'test_(block|call)'

fuzz: $(STAMP) core  ## random problems, all backends against each other, until stopped or SECONDS are over
	$(ONE) $(BIN)/python -m tests.fuzz $(ARGS)

# On a machine with a GPU; PYTHON_GPU may name the Python that has torch for CUDA and this package.
PYTHON_GPU ?= $(BIN)/python
gpu: core  ## suite, sanitizer, times beside other packages and roofline on a CUDA device, into benchmarks/results/gpu.json
	$(PYTHON_GPU) -m benchmarks.gpu $(ARGS)

# --- experiments and measurements ----------------------------------------------------------------------------------

sudoku: $(STAMP) core  ## learn 4x4 Sudoku from examples (ARGS=... for `optlayer sudoku`)
	$(BIN)/optlayer sudoku $(ARGS)

paper: $(BENCH_STAMP) core  ## every experiment of the OptNet paper, beside Gurobi and qpth
	$(BENCH_VENV)/bin/optlayer paper $(ARGS)

$(BENCH_STAMP): pyproject.toml constraints.txt CMakeLists.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt torch
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt -C wheel.cmake=false -e '.[bench]'
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check install -q --no-deps qpth libdqp
	touch $@

bench-setup: $(BENCH_STAMP)  ## .venv-bench with the package and its peers

bench: $(BENCH_STAMP) core  ## time against the peers; writes the report from the measurements
	$(BENCH_VENV)/bin/python -m benchmarks.run $(ARGS)

bench-sparse: $(BENCH_STAMP) core  ## time sparse batches beside their peers; writes docs/sparse-benchmark.md
	$(ONE) $(BENCH_VENV)/bin/python -m benchmarks.sparse $(ARGS)

bench-families: $(STAMP) core  ## median and worst time of every kind of hard problem, into docs/backends.md
	$(ONE) $(BIN)/python -m benchmarks.families --write $(ARGS)

# --- documentation and packages ------------------------------------------------------------------------------------

docs: $(STAMP)  ## the site, every warning an error
	$(BIN)/mkdocs build --strict

notebooks: $(STAMP) core  ## run examples/*.py and keep them with their pictures in docs/examples
	@for example in examples/*.py; do \
	  $(ONE) $(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --execute \
	    --output docs/examples/$$(basename $$example .py).ipynb $$example || exit 1; \
	done

docs-serve: $(STAMP)  ## the site at localhost:8000
	$(BIN)/mkdocs serve

wheel: $(STAMP)  ## sdist and wheel, checked, the wheel tried in an empty environment
	rm -rf dist
	$(BIN)/python -m build -q --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	rm -rf build/wheel-env && $(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt dist/*.whl
	cd build && wheel-env/bin/python ../tests/smoke.py --core

clean:  ## everything made here, except the environments
	rm -rf build dist site src/optlayer/lib .pytest_cache .mypy_cache .ruff_cache .hypothesis

# make run      set up, start a manager and a worker with example tasks, submit a job, serve until Ctrl-C
# make test     set up what tests need, run them
# make check    format, lint, types, import contracts
# make bench    measure on this machine (BENCH="--quick" and other options are passed on)
# make dist     wheel and sdist in dist/
# Needs python3 (3.11 or newer, with venv), git and make; everything else goes into .venv.

PYTHON ?= python3
BENCH ?=
TESTS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := src tests examples benchmarks

.PHONY: run test check format bench dist clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	$(BIN)/python examples/run.py

test: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.servers
	$(BIN)/python -m pytest $(TESTS)

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(VENV)/run.stamp
	$(BIN)/python -m benchmarks.run $(BENCH)

dist: $(VENV)/dev.stamp
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "easyjobs needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1" # the first that reads [dependency-groups]

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[fast]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt $(VENV)/run.stamp | $(BIN)/python
	$(PIP) --group dev
	@touch $@

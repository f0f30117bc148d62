# make run      set up, start a manager and a worker with example tasks, submit a job, serve until Ctrl-C
# make test     set up what tests need, run them (TESTS="tests/http": some; TESTS="-n 2 --dist loadfile": two files at a time)
# make check    format, lint, types, import contracts
# make faults   break it on purpose, for about an hour (make faults-long: all night; FAULTS="--row N2": one row)
# make bench    measure on this machine (BENCH="--quick" and other options are passed on)
# make dist     wheel and sdist in dist/
# make audit, make sbom, make lock, make check-minimum: known holes, list of parts, hashes, oldest versions
# Needs python3 (3.11 or newer, with venv), git and make; everything else goes into .venv.

PYTHON ?= python3
BENCH ?=
FAULTS ?=
TESTS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := src tests faults examples benchmarks

.PHONY: run test check format faults faults-long bench dist audit sbom lock check-minimum clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	$(BIN)/python examples/run.py

test: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.servers
	$(BIN)/python -m pytest $(TESTS)

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check $(SOURCES) docs README.md
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff format $(SOURCES) docs README.md
	$(BIN)/ruff check --fix $(SOURCES)

faults: $(VENV)/faults.stamp
	@$(BIN)/python -m tests.servers
	$(BIN)/python -m faults $(FAULTS)

faults-long: $(VENV)/faults.stamp
	@$(BIN)/python -m tests.servers
	$(BIN)/python -m faults --long $(FAULTS)

bench: $(VENV)/run.stamp
	$(BIN)/python -m benchmarks.run $(BENCH)

dist: $(VENV)/dev.stamp
	rm -rf dist
	$(BIN)/python -m build --no-isolation

# --- supply chain: these need a package index ------------------------------------------------------------------------------------

# every pinned package against the database of known holes
audit: $(VENV)/audit.stamp
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

# what a manager with all extras is made of, as CycloneDX, in dist/
sbom: $(VENV)/audit.stamp
	mkdir -p dist
	$(BIN)/uv venv --quiet --clear build/runtime
	$(BIN)/uv pip install --quiet --python build/runtime --require-hashes --requirement requirements.lock
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-format JSON --output-file dist/easyjobs-sbom.json build/runtime/bin/python

# requirements.lock: what constraints.txt allows, with the hashes of its files, for `pip install --require-hashes -r requirements.lock`
lock: $(VENV)/audit.stamp
	$(BIN)/uv pip compile --quiet --universal --all-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
		--constraint constraints.txt --output-file requirements.lock pyproject.toml

# the oldest versions that pyproject.toml allows, under the fast suites
check-minimum: $(VENV)/audit.stamp
	mkdir -p build
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --all-extras --no-header --output-file build/minimum.txt pyproject.toml
	$(BIN)/uv venv --quiet --clear build/minimum
	$(BIN)/uv pip install --quiet --python build/minimum --constraint build/minimum.txt --editable '.[all]' --group test 'httpx<1' # for starlette's TestClient of then
	build/minimum/bin/python -m pytest -p no:cacheprovider -W default $(or $(TESTS),tests/domain tests/protocol tests/runtime tests/services tests/http tests/contracts/test_stores.py)

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

# without the fuzzer, where there is none for this Python, the rest runs and says so
$(VENV)/faults.stamp: $(VENV)/dev.stamp
	$(PIP) --group faults || echo "atheris cannot be installed here: the part FUZZ will be left out" >&2
	@touch $@

$(VENV)/audit.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --group audit
	@touch $@

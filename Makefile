# Two promises: `make demo` opens the dashboard, `make test` runs the tests; each sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Where the demo keeps its session.
DEMO_DIRECTORY ?= $(CURDIR)

# Tests that run side by side: most wait for processes they started.
TESTS_AT_ONCE ?= 2

# An NVIDIA driver answers nvidia-smi, or at least shows its device node.
RUNTIME := $(shell if nvidia-smi -L >/dev/null 2>&1 || [ -e /dev/nvidia0 ]; then echo gpu; else echo cpu; fi)

.PHONY: demo setup setup-dev test test-slow test-gpu lint bench screenshots clean

demo: setup
	cd "$(DEMO_DIRECTORY)" && "$(CURDIR)/$(BIN)/trimtab" demo

setup: $(VENV)/.setup-$(RUNTIME)

setup-dev: $(VENV)/.setup-dev

# A failed optional install (TensorRT's libraries, pycuda's compiler) never breaks the rest.
$(VENV)/.setup-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*,serve]'
	@if [ "$*" = gpu ]; then for extra in tensorrt pycuda; do \
	  $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$$extra]" \
	  || echo "The optional extra '$$extra' could not be installed; everything else works without it."; done; fi
	touch $@

$(VENV)/.setup-dev: $(VENV)/.setup-$(RUNTIME) pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup-dev lint
	$(BIN)/pytest -n $(TESTS_AT_ONCE) --dist worksteal -m "not slow and not gpu" --durations=15

test-slow: setup-dev
	$(BIN)/pytest -n $(TESTS_AT_ONCE) --dist worksteal -m "slow and not gpu" --ignore=tests/benchmarks --durations=15

test-gpu: setup-dev
	$(BIN)/pytest -m gpu tests/gpu

bench: setup-dev
	$(BIN)/python tests/benchmarks/__main__.py

screenshots: setup-dev
	$(BIN)/python screenshots/make.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# `make demo` and `make test` do all set-up on a machine with python3 (venv included) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Both names: older versions of pip read the first for build dependencies too, newer ones the second.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test lint format bench docs clean
help:           ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# Installed anew when the C++ sources or the requirements change; Python sources are used in place.
$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test,bench,report,dev]'
	-@$(BIN)/irm-fast doctor
	@touch $@

install: $(VENV)/.installed  ## make .venv and install everything into it

demo: $(VENV)/.installed  ## the main job end to end, offline, on a made log with known truth
	$(BIN)/irm-fast demo --output demo

# One worker a core, of one thread each: two threads of one process stall whenever another process wants a core.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.installed  ## run the tests; TESTS="tests/data -k parquet" runs a part, in one process
	$(BIN)/python -m pytest -q $(or $(TESTS),-n logical --maxprocesses 8 --dist worksteal)

lint: $(VENV)/.installed  ## linters and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## time both losses against eager PyTorch, torch.compile and the memory floor
	$(BIN)/python -m pytest benchmarks --benchmark-only

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## build the site, build/site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:          ## remove everything that make made
	rm -rf $(VENV) build demo .pytest_cache .ruff_cache .mypy_cache .benchmarks

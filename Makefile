# `make demo` and `make test` each make their own virtual environment: all they need is Python, pip and make.

PYTHON ?= python3
DEMO := .venv-demo
TEST := .venv
BIN := $(TEST)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean python

help:
	@echo "make demo    an agent at work, one of its processes killed on the way"
	@echo "make test    lint, formatting, types, import directions, tests"
	@echo "make lint    the first four of these"
	@echo "make format  write the code as the formatter would"
	@echo "make bench   what we claim about speed, measured again"
	@echo "make clean   remove the virtual environments and caches"
	@echo "PYTHON=python3.13 make ... uses another Python (3.11 or newer)"

demo: $(DEMO)/.installed
	$(DEMO)/bin/python -m examples.quickstart

test: lint
	$(BIN)/python -m pytest

lint: $(TEST)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TEST)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(TEST)/.installed
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(DEMO) $(TEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

# The stamp is written last: an installation that was broken off is done again, a finished one is not.
$(DEMO)/.installed: EXTRA := local
$(TEST)/.installed: EXTRA := dev
$(DEMO)/.installed $(TEST)/.installed: pyproject.toml | python
	@echo "setting up $(@D) (once; about a minute)"
	@rm -rf $(@D)
	@if $(PYTHON) -c "import ensurepip" 2>/dev/null; then $(PYTHON) -m venv $(@D); \
	else $(PYTHON) -m venv --without-pip $(@D) && $(PYTHON) -m pip --python $(@D)/bin/python install --quiet pip; fi
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRA)]'
	@touch $@

python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install Python 3.11 or newer, or say PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	echo "Factorial needs Python 3.11 or newer, and $(PYTHON) is `$(PYTHON) -V 2>&1`: say PYTHON=python3.11 make ..." >&2; exit 1; }

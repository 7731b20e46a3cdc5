# `make demo` and `make test` each make their own virtual environment: all they need is Python, pip and make.

PYTHON ?= python3
DEMO := .venv-demo
TEST := .venv
BIN := $(TEST)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format wheel bench cluster chaos outage mutants model clean python

help:
	@echo "make demo      an agent at work, one of its processes killed on the way"
	@echo "make test      lint, formatting, types, import directions, workflows, tests"
	@echo "make lint      the first five of the above"
	@echo "make test-fast the tests that need no server and no processes: less than a minute"
	@echo "make format    write the code as the formatter would"
	@echo "make wheel     the package as users install it, in dist/"
	@echo "make cluster   the tests that share a server, on a cluster of three nodes and on one with sentinels"
	@echo "make chaos     every fault for longer, then a storm of kills of 20 minutes (MINUTES=2: of two)"
	@echo "make outage    the provider of the model is away for ten minutes (MINUTES=2: for two), default settings"
	@echo "make mutants   one fault at a time in a copy of the code: the tests have to notice each"
	@echo "make model     every state of a model of the mailbox protocol; needs Spin and gcc"
	@echo "make bench     what we claim about speed, measured again"
	@echo "make clean     remove the virtual environments and caches"
	@echo "PYTHON=python3.13 make ... uses another Python (3.11 or newer)"

demo: $(DEMO)/.installed
	$(DEMO)/bin/python -m examples.quickstart

# Most tests wait most of the time, for processes, servers and clocks: so several run at once.
JOBS ?= 3
# The files of few and long tests, in tests/chaos, begin first: else they begin last, and one of them ends alone.
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder \
	--durations=15 --durations-min=2
test: lint
	$(PYTEST)

# What needs no server and no process of Factorial. It takes less than a minute on two cores.
test-fast: $(TEST)/.installed
	$(PYTEST) tests/unit tests/models tests/examples/test_architecture.py tests/examples/test_house_rules.py

lint: $(TEST)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	@# It finds the package by the Python on the path. On success it prints a hundred lines of statistics.
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/basedpyright --verifytypes factorial --ignoreexternal >$(TEST)/types.log \
	&& grep 'completeness score' $(TEST)/types.log || { cat $(TEST)/types.log; exit 1; }
	$(BIN)/lint-imports
	@if [ -x $(BIN)/actionlint ]; then echo $(BIN)/actionlint; $(BIN)/actionlint -no-color .github/workflows/*.yml; fi

format: $(TEST)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(TEST)/.installed
	rm -rf dist
	$(BIN)/hatchling build --target wheel

bench: $(TEST)/.installed
	$(BIN)/python -m benchmarks

# Tests that are about one server of their own have one here, too.
SHARING := tests/redis tests/spec $(addprefix tests/chaos/test_, kill.py harm.py waiting.py operating.py storm.py \
	stop_and_start.py two_machines.py fault_takeover.py $(addprefix fault_, races.py families.py subscribers.py \
	kill_points.py zombies.py poison.py clocks.py doctor.py payloads.py large_messages.py))
cluster: $(TEST)/.installed
	FACTORIAL_TEST_SERVER=cluster $(PYTEST) $(SHARING)
	FACTORIAL_TEST_SERVER=sentinel $(PYTEST) $(SHARING)

# The storm's goals are per minute: 10,000 tasks and 50 kills.
chaos: $(TEST)/.installed
	FACTORIAL_CHAOS=long $(PYTEST) -o faulthandler_timeout=0 tests/chaos tests/model
	$(BIN)/python -m tests.chaos.storm --minutes $(or $(MINUTES),20) --figures storm.json

outage: $(TEST)/.installed
	FACTORIAL_OUTAGE_MINUTES=$(or $(MINUTES),10) $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/chaos/test_outage.py

mutants: $(TEST)/.installed
	$(BIN)/python -m tests.mutants

model: | python
	@$(PYTHON) formal/check.py

clean:
	rm -rf $(DEMO) $(TEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

# The stamp is written last: an installation that was interrupted starts over, a finished one is kept.
# Dependency groups (PEP 735) need pip 25.1: the pip that an older Python puts into the environment cannot read them.
$(DEMO)/.installed: PACKAGES := --editable '.[local]'
$(TEST)/.installed: PACKAGES := --editable . --group dev
$(DEMO)/.installed $(TEST)/.installed: pyproject.toml | python
	@echo "setting up $(@D) (once; about a minute)"
	@rm -rf $(@D)
	@if $(PYTHON) -c "import ensurepip" 2>/dev/null; then $(PYTHON) -m venv $(@D); \
	else $(PYTHON) -m venv --without-pip $(@D) && $(PYTHON) -m pip --python $(@D)/bin/python install --quiet pip; fi
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PACKAGES)
	@touch $@

python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install Python 3.11 or newer, or say PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	echo "Factorial needs Python 3.11 or newer, and $(PYTHON) is `$(PYTHON) -V 2>&1`: say PYTHON=python3.11 make ..." >&2; exit 1; }

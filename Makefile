# make demo and make test need nothing but make and what scripts/setup finds or asks for.
# Kept plain: GNU make 3.81 (macOS) runs it.

BIN = .venv/bin
PYTHON_FILES = nanochat scripts tests deploy

SHARED = ../shared

.PHONY: help setup dev demo test check fmt bench soak golden docs requirements size

help:
	@echo "make demo          the whole story: install, train, chat in the browser   (ARGS='--no-serve')"
	@echo "make test          install what the tests need, run them                  (ARGS='tests/cli -x')"
	@echo "make setup         install into .venv"
	@echo "make check         format, lint, types, layers, docs and public names are in order"
	@echo "make fmt           format and mend what can be mended"
	@echo "make bench         training speed, beside karpathy/nanochat's with ARGS='--peer-nanochat DIR'"
	@echo "make soak          kill saving, damage checkpoints, 1,000 times each       (ARGS='--kills 100');"
	@echo "                   64 users, 300 who leave, 5,000 requests from a schema   (SERVE_ARGS='--users 8');"
	@echo "                   5 GB of text within 2 GB of memory                      (DATA_ARGS='--gigabytes 1')"
	@echo "make golden        take the tests' golden figures anew from SHARED=../shared"
	@echo "make docs          write docs/cli.md and docs/map.md anew"
	@echo "make requirements  which numbers of docs/requirements.md no test carries"
	@echo "make size          lines of code by room"

setup:
	@scripts/setup

dev:
	@scripts/setup dev

demo: setup
	@$(BIN)/nanochat demo $(ARGS)

# Two workers.  The whole suite also measures coverage, which make check reads; CI, which does not,
# leaves it out.
COVERAGE ?= --cov --cov-report= --cov-fail-under=0
test: dev
	$(BIN)/python -m pytest -n 2 -m "not slow" $(or $(ARGS),$(COVERAGE))

# Everything is checked, then the answer is given: one run shows all that is wrong.
check: dev
	@$(BIN)/python scripts/check.py

fmt: dev
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/ruff check --fix $(PYTHON_FILES)

docs: dev
	$(BIN)/python scripts/docs.py

bench: setup
	@$(BIN)/nanochat bench train $(ARGS)

# Three JSON lines: checkpoints (--folder DIR takes the disk that is meant), a server, large texts.
soak: dev
	@$(BIN)/python scripts/soak.py --speed-depth 9 $(ARGS)
	@$(BIN)/python scripts/soak_serve.py $(SERVE_ARGS)
	@$(BIN)/python scripts/soak_data.py $(DATA_ARGS)

# The figures the tests compare with, taken anew from the folders they came from; review the diff.
golden: dev
	@for file in tests/golden/*.py; do \
	    $(BIN)/python -m tests.golden.$$(basename $$file .py) $(SHARED) || exit 1; done
	@git --no-pager diff --stat tests/golden

requirements: dev
	@$(BIN)/python scripts/requirements.py

size: setup
	@$(BIN)/python scripts/size.py

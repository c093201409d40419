# make demo and make test need nothing but make and what scripts/setup finds or asks for.
# Kept plain: GNU make 3.81 (macOS) runs it.

BIN = .venv/bin
PYTHON_FILES = nanochat scripts tests deploy

SHARED = ../shared

.PHONY: help setup dev demo test check fmt bench bench-eval bench-serve soak golden docs requirements size

help:
	@echo "make demo          the whole story: install, train, chat in the browser   (ARGS='--no-serve')"
	@echo "make test          install what the tests need, run them                  (ARGS='tests/cli -x')"
	@echo "make setup         install into .venv"
	@echo "make check         format, lint, types, layers, docs and public names are in order"
	@echo "make fmt           format and mend what can be mended"
	@echo "make bench         training speed, beside karpathy/nanochat's with ARGS='--peer-nanochat DIR'"
	@echo "make bench-eval    what the evaluations promise, in full: 630 verdicts, HumanEval, lm-eval,"
	@echo "                   speed beside the reference with PEER=DIR                (DATA=DIR MODEL=d12)"
	@echo "make bench-serve   what users of a server notice, beside the engine alone (ARGS='--seconds 10')"
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

# The long forms of what CI tests in small, then four JSON lines: CORE beside karpathy/nanochat's own
# loop (PEER, a checkout of it), what a lettered question costs, what a sandboxed program costs, and
# lm-evaluation-harness's opinion.  BASE is a base directory of karpathy/nanochat's, MODEL any model.
DATA ?= $(SHARED)/data/eval
BASE ?= $(SHARED)/parity/core-eval/base
MODEL ?= $(firstword $(wildcard $(BASE)/base_checkpoints/*))
bench-eval: dev
	@NANOCHAT_SHARED=$(abspath $(SHARED)) $(BIN)/python -m pytest -q -m slow \
	    tests/evals tests/cli/test_eval.py
	@$(BIN)/python -m nanochat.bench.core $(BASE) $(DATA) $(or $(PEER),-)
	@$(BIN)/python -m nanochat.bench.letters $(MODEL) $(DATA)
	@$(BIN)/python -m scripts.sandbox_overhead
	@$(BIN)/python -m scripts.agree_lm_eval $(MODEL) --data-dir $(DATA)

# One, ten and sixteen users of a model of depth 12; fails where the first token of an idle server
# comes after 200 ms.
bench-serve: setup
	@$(BIN)/nanochat bench serve --depth 12 --users 1,10,16 --seconds 12 --output-tokens 48 \
	    --engine --turns 5 --max-ttft-ms 200 $(ARGS)

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

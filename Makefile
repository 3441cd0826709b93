VENV ?= .venv
export VENV
# Real data for tests and benchmarks, where a copy lies beside the checkout.
DEFORMER_DATA ?= $(realpath ../shared/data)
export DEFORMER_DATA

.PHONY: setup quickstart test

setup:
	scripts/setup.sh

quickstart: setup
	$(VENV)/bin/deformer quickstart

test: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy src
	$(VENV)/bin/python -m pytest

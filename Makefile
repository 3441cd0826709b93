VENV ?= .venv
export VENV
# Real data for tests and benchmarks, where a copy lies beside the checkout.
DEFORMER_DATA ?= $(realpath ../shared/data)
export DEFORMER_DATA

.PHONY: setup quickstart mnist test

setup:
	scripts/setup.sh

quickstart: setup
	$(VENV)/bin/deformer quickstart

# Ten minutes on binarized MNIST, from DEFORMER_DATA or downloaded.
mnist: setup
	$(VENV)/bin/deformer train --source mnist-binarized --minutes 10 -o mnist.safetensors

test: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy src
	$(VENV)/bin/python -m pytest

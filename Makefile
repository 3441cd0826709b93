VENV ?= .venv
export VENV
# Real data for tests and benchmarks, where a copy lies beside the checkout.
DEFORMER_DATA ?= $(realpath ../shared/data)
export DEFORMER_DATA

# Processes of pytest, on one thread each.
JOBS ?= 2

.PHONY: setup quickstart mnist test docs

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
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS)

# The pages of docs and a reference of the library, as a site in site/.
docs: setup
	$(VENV)/bin/python -m pip install --quiet -e '.[docs]'
	$(VENV)/bin/mkdocs build

.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup lint test docs-check demo clean

help:  ## say what the targets do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cluster,dev]'
	touch $@

setup: $(BIN)/.installed  ## virtual environment in .venv with everything

lint: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, then all tests
	$(BIN)/python -m pytest

docs-check: setup  ## every link, Python block and command of README and docs, run: an hour or two on two cores
	$(BIN)/python -m pytest -s tests/docs/test_docs.py tests/docs/commands.py

demo: setup  ## the whole chain on a simulated planet, into demo/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m jobs.demo

clean:  ## remove what demo and the tools left
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache

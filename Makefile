# Two commands for a fresh machine: `make demo` and `make test`. Everything else is a step of these.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= runs/demo

.PHONY: help demo test quick lint format lock wheels docs clean

help:
	@echo 'make demo    generate data, train, gate, evaluate, stream; results in $(DEMO_DIR)/ (<= 10 min on 2 cores)'
	@echo 'make test    the whole test suite'
	@echo 'make quick   a part of it that touches every package, for the inner loop'
	@echo 'make lint    formatting, lint and types'
	@echo 'make docs    the documentation as a site in build/site/'
	@echo 'make wheels  dist/*.whl with the engine inside, for x86-64 and ARM'
	@echo 'make lock    renew requirements.txt and requirements-dev.txt'

# A stamp per set of requirements: made again only when its list changes.
$(VENV)/.runtime: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# `--no-deps`: the list is complete, and PyTorch (only a reference in tests) must not pull in its GPU libraries.
$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-dev.txt
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/python -m skipconv_jax demo --workdir $(DEMO_DIR)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m quick

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	./.ci/lock

wheels:
	./.ci/wheels

docs: $(VENV)/.dev
	$(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

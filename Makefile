# Two commands: `make test` and `make perf`. Each sets itself up first.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin

.PHONY: test perf setup lint
setup: $(VENV)/installed
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest --cases tiny $(ARGS)

perf: setup
	@mkdir -p results
	$(BIN)/pytest tests/accuracy tests/perf -m "perf or accuracy" --benchmark-json=results/benchmark.json $(ARGS)

# Two commands: `make test` and `make perf`. Each sets itself up first.
#
# The workflows in .github/ run these targets and nothing else. What people type into GitHub's forms
# (CASES, REASON, RUN_ID) is read by the shell as "$$NAME", never by make as $(NAME): it stays text.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
ARGS ?=
BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: test test-browser test-otava perf setup lint doctor report clean
.PHONY: baseline-source baseline baseline-pull-request
setup: $(STAMP)
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet --pedantic .github/workflows
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

test: lint
	$(BIN)/pytest --cases tiny -o strict_parametrization_ids=true $(ARGS)

# Beside `make test`: the page in a browser (google-chrome or chromium), and our exports and history
# read by Apache Otava itself, which brings an older numpy and so has an environment of its own.
test-browser:
	$(MAKE) setup EXTRAS=test,browser
	$(BIN)/pytest tests/browser $(ARGS)

test-otava:
	$(PYTHON) -m venv $(VENV)-otava
	$(VENV)-otava/bin/pip install --quiet --disable-pip-version-check 'apache-otava>=0.8' pandas scipy \
	  pyyaml tabulate pytest pytest-benchmark hypothesis
	$(VENV)-otava/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	$(VENV)-otava/bin/pytest tests/unit/report/test_exports.py tests/unit/report/test_history.py $(ARGS)

perf: setup
	@mkdir -p results
	$(BIN)/pytest tests/accuracy tests/perf -m "perf or accuracy" --benchmark-json=results/benchmark.json $${CASES:+"--cases=$$CASES"} $(ARGS)

doctor: setup
	$(BIN)/perfline doctor $${CASES:+--cases "$$CASES"} $(ARGS)

report: setup
	$(BIN)/perfline report results/run.json -o results/report.html $(ARGS)

clean:
	rm -rf -- $(VENV) $(VENV)-otava results .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache

# Of .github/workflows/baseline.yml: which run was it; accept its record; propose that to people.
baseline-source:
	$(PYTHON) scripts/baseline_pull_request.py source

baseline: setup
	set -f; IFS=,; $(BIN)/perfline baselines update $${CASES:---all} --run results/run.json \
	  --reason "$$REASON" $${ADD:+--add} $${ACCEPT_REGRESSION:+--accept-regression} > results/update.txt
	@cat results/update.txt

baseline-pull-request:
	$(PYTHON) scripts/baseline_pull_request.py propose

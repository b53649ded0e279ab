# Two commands: `make test` and `make perf`. Each sets itself up first.
#
# The workflows in .github/ run these targets and nothing else. What people type into GitHub's forms
# (CASES, REASON, RUN_ID ...) is read by the shell as "$$NAME", never by make as $(NAME): it stays text.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
ARGS ?=
BIN := $(VENV)/bin
UV := $(VENV)-uv/bin/uv
comma := ,
STAMP := $(VENV)/installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: test test-browser test-otava test-parity test-plugins mutants perf quick quick-tiny quick-slim setup lint lock matrix doctor report clean
.PHONY: baseline-source baseline baseline-pull-request upgrade-compare upgrade-isolate upgrade-proposal
setup: $(STAMP)
$(STAMP): pyproject.toml constraints.txt
	$(MAKE) $(UV) || echo "no uv here: pip installs, which takes longer"
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) scripts/install.py --uv $(UV) --python $(BIN)/python --extras '$(EXTRAS)'
	[ ! -x $(UV) ] || ln -sf $(abspath $(UV)) $(BIN)/uv  # so that environments of --candidate-install take seconds
	touch $@

LINT := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && \
  $(BIN)/zizmor --offline --quiet --pedantic .github/workflows && \
  $(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

lint: setup
	$(LINT)

# Of our own tests. Warnings are errors here, not in pyproject.toml: measuring never depends on them.
# The last are torch's own import of inductor, and pytest-benchmark where every case was skipped.
STRICT := -p hypothesispytest -o strict_parametrization_ids=true -W error \
  -W 'ignore:`torch.jit.script_method`:DeprecationWarning' -W 'ignore:Not saving anything'

PARALLEL := -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# No test judges how fast or still this machine is, so all of them share it, and with what lints.
# What a killed session left torn in inductor's cache is not met: the cache is new. Our own modules
# are compiled once, not by each of some hundred processes.
test: setup
	status=0; TORCHINDUCTOR_CACHE_DIR=$$(mktemp -d); export TORCHINDUCTOR_CACHE_DIR; \
	( $(LINT) ) > "$$TORCHINDUCTOR_CACHE_DIR/lint.txt" 2>&1 & lint=$$!; \
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest $(STRICT) $(PARALLEL) tests/e2e tests/plugin tests/unit tests/browser $(ARGS) || status=1; \
	wait $$lint || status=1; cat "$$TORCHINDUCTOR_CACHE_DIR/lint.txt"; \
	rm -rf -- "$$TORCHINDUCTOR_CACHE_DIR"; exit $$status

# uv has an environment of its own: a stale constraints.txt does not keep it from being made anew.
$(UV):
	$(PYTHON) -m venv $(VENV)-uv
	$(VENV)-uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

# constraints.txt: what it pins stays, but under ARGS=--upgrade.
lock: $(UV)
	$(PYTHON) scripts/lock.py --uv $(UV) $(ARGS)

# Each row of scripts/matrix.py in an environment of its own; ROWS=newest,lock: some of them.
matrix: $(UV)
	$(PYTHON) scripts/matrix.py --uv $(UV) --folder $(VENV)-matrix $${ROWS:+--rows "$$ROWS"}

# Beside `make test`: the page in a browser (google-chrome or chromium); our exports and history read
# by Apache Otava itself, which brings an older numpy and so has an environment of its own; pytest's
# plugins beside ours, which would load themselves in any environment that has them.
test-browser:
	$(MAKE) setup EXTRAS=test,browser
	$(BIN)/pytest $(STRICT) tests/browser $(ARGS)

test-otava:
	$(PYTHON) -m venv $(VENV)-otava
	$(VENV)-otava/bin/pip install --quiet --disable-pip-version-check 'apache-otava>=0.8' pandas scipy \
	  pyyaml tabulate pytest pytest-benchmark hypothesis
	$(VENV)-otava/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	$(VENV)-otava/bin/pytest $(STRICT) tests/unit/report/test_exports.py tests/unit/report/test_history.py $(ARGS)

# Prompts, scores and answers against lm-evaluation-harness, which brings a hundred packages.
test-parity: $(UV)
	$(MAKE) setup VENV=$(VENV)-parity UV=$(UV)
	$(VENV)-parity/bin/pip install --quiet --disable-pip-version-check --no-build-isolation \
	  -c constraints.txt -e '.[bench]'
	$(VENV)-parity/bin/pytest $(STRICT) tests/unit/tasks/test_parity.py $(ARGS)

PLUGINS := pytest-cov pytest-github-actions-annotate-failures pytest-html pytest-instafail \
  pytest-randomly pytest-repeat pytest-rerunfailures pytest-sugar pytest-timeout

test-plugins: setup
	$(PYTHON) -m venv $(VENV)-plugins
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
	  > $$($(VENV)-plugins/bin/python -c "import site; print(site.getsitepackages()[0])")/below.pth
	$(VENV)-plugins/bin/pip install --quiet --disable-pip-version-check $(PLUGINS)
	$(VENV)-plugins/bin/python -m pytest $(STRICT) tests/plugin/test_plugins.py $(ARGS)

# Would the unit tests notice, were one of the decisions another one? An hour or two on one core.
mutants: setup
	$(PYTHON) -m venv $(VENV)-mutants
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
	  > $$($(VENV)-mutants/bin/python -c "import site; print(site.getsitepackages()[0])")/below.pth
	$(VENV)-mutants/bin/pip install --quiet --disable-pip-version-check 'mutmut>=3.8.1,<3.9'
	$(VENV)-mutants/bin/python scripts/mutants.py $(ARGS)

perf: setup
	@mkdir -p results
	$(BIN)/pytest tests/accuracy tests/perf -m "perf or accuracy" --benchmark-json=results/benchmark.json $${CASES:+"--cases=$$CASES"} $(ARGS)

SLIM := llama3-8b-slim,deepseek-7b-slim
# What a pull request can know without a clock, a GPU or a checkpoint. None of it depends on how fast
# the machine is: one instruction set and one name, and all of them share one baseline. In GitHub
# Actions ($CI), a baseline that is missing fails. Nor does inductor compile programs to try the set.
quick: export PERFLINE_MACHINE = any-$(shell uname -m)
quick: export ATEN_CPU_CAPABILITY = avx2
quick: export TORCHINDUCTOR_VEC_ISA_OK = 1
quick: setup
	$(MAKE) --no-print-directory -j2 --output-sync=target quick-tiny quick-slim
QUICK = $(BIN)/pytest tests/accuracy tests/perf -m quick $(if $(CI),--strict-verdicts)
quick-tiny:
	$(QUICK) --cases tiny --results results/quick.json $(ARGS)
quick-slim:
	$(QUICK) --cases $(SLIM) --dummy-weights --results results/quick-slim.json $(ARGS)

doctor: setup
	$(BIN)/perfline doctor $${CASES:+--cases "$$CASES"} $(ARGS)

report: setup
	$(BIN)/perfline report results/run.json -o results/report.html $(ARGS)

clean:
	rm -rf -- $(VENV) $(VENV)-otava $(VENV)-mutants $(VENV)-parity $(VENV)-plugins $(VENV)-uv $(VENV)-matrix mutants results .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache

# Of .github/workflows/baseline.yml: which run was it; accept its record; propose that to people.
baseline-source:
	$(PYTHON) scripts/proposals.py source

baseline: setup
	set -f; IFS=,; $(BIN)/perfline baselines update $${CASES:---all} --run results/run.json \
	  --reason "$$REASON" $${ADD:+--add} $${ACCEPT_REGRESSION:+--accept-regression} > results/update.txt
	@cat results/update.txt

baseline-pull-request:
	$(PYTHON) scripts/proposals.py propose

# Of .github/workflows/upgrade.yml, after `make setup` and `make lock ARGS="--upgrade --changed ..."`:
# what is installed against the pins that changed (no `setup` here, it would install those); which of
# them made a case worse; and what people get to read of it.
upgrade-compare:
	set -f; IFS=,; test ! -s results/changed.txt || $(BIN)/perfline compare $${CASES:+$$CASES} --strict --candidate-install "-r results/changed.txt" --markdown results/upgrade.md

upgrade-isolate:
	$(BIN)/python scripts/isolate_regressed.py

upgrade-proposal:
	$(PYTHON) scripts/proposals.py upgrade

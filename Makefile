# A machine needs make and Python 3.11 or newer; the rest is set up in .venv, from the pins in constraints/.

# The tested Airflow releases, each with pins in constraints/ and a target test-<minor>.
RELEASES = 2.11.2 3.1.8 3.3.2
MINORS = $(basename $(RELEASES))
# The one in .venv, for everything but the matrix.
MAIN = 3.3

# Tried by running them: a name on the PATH may be a pyenv shim without a Python behind it.
SUITABLE = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do \
	$$each -c '$(SUITABLE)' 2>/dev/null && echo $$each && break; done)
# One interpreter for all releases of the matrix; Airflow 2.11 takes nothing newer than 3.12.
MATRIX_PYTHON ?= $(shell for each in python3.11 .venv/bin/python; do \
	$$each -c '$(SUITABLE)' 2>/dev/null && echo $$each && break; done)

# Where it is set, each of the many processes compiles Airflow anew.
unexport PYTHONDONTWRITEBYTECODE

BIN = .venv/bin
# A file's tests share what is costly, so they stay in one process. As they come: by default files with few tests are the last, and
# with them the longest ones.
PYTEST = python -m pytest -q --numprocesses logical --dist loadfile --no-loadscope-reorder
# The engine imports Python's own modules alone, so that no release of Airflow makes a difference to its tests; the bench is run on
# the main release.
MATRIX_TESTS = --ignore tests/sync --ignore tests/bench
SET_UP_WITH = pyproject.toml airflow_provider_talon_cdp/__init__.py
MATRIX = $(addprefix test-,$(MINORS))

.PHONY: help test lint test-matrix $(MATRIX) demo demo-guard ui bench bench-scale pins dist clean

help:
	@echo "make test         lint, then all tests on Airflow $(MAIN), with branch coverage"
	@echo "make demo         the provider at work, against a local Talon.One"
	@echo "make demo-guard   the same, and how an empty warehouse is refused"
	@echo "make ui           the same in Airflow's web UI"
	@echo "make bench        us beside the alternatives, in an hour; to try it: make bench BENCH=--quick"
	@echo "make bench-scale  ten million members through a real Airflow; fewer: BENCH='--members 300000'"
	@echo "make lint         ruff and mypy"
	@echo "make test-matrix  tests and demo on Airflow $(MINORS); one alone: make test-2.11"
	@echo "make pins         the newest dependencies into constraints/"
	@echo "make dist         wheel and sdist into dist/"
	@echo "make clean        remove all that make made"

test: lint
	@$(BIN)/$(PYTEST) --cov --cov-report=
	@$(BIN)/coverage report --skip-covered --show-missing --fail-under=90
	@echo "Of this, api/ and hooks/:"
	@$(BIN)/coverage report --include='*/api/*,*/hooks/*' --fail-under=95

lint: .venv/.ready
	@$(BIN)/ruff check --quiet --output-format concise
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/mypy --no-error-summary

test-matrix: $(MATRIX)

$(MATRIX): test-%: .venv-%/.ready
	@echo "== Airflow $* on $$(.venv-$*/bin/python --version): tests and demo"
	@.venv-$*/bin/$(PYTEST) $(MATRIX_TESTS)
	@.venv-$*/bin/python demo/run.py

demo: .venv/.ready
	@$(BIN)/python demo/run.py

demo-guard: .venv/.ready
	@$(BIN)/python demo/run.py --guard

ui: .venv/.ready
	@$(BIN)/python demo/ui.py

bench: .venv-bench/.ready
	@.venv-bench/bin/python bench/run.py $(BENCH)

bench-scale: .venv-bench/.ready
	@.venv-bench/bin/python bench/scale.py $(BENCH)

dist: .venv/.ready
	@$(BIN)/hatchling build

pins: .venv/.ready
	@$(foreach each,$(RELEASES),echo "apache-airflow==$(each)" | $(BIN)/uv pip compile --quiet --upgrade \
		--universal --python-version 3.11 --no-annotate --no-emit-index-url --custom-compile-command "make pins" \
		--extra emulator --group dev --constraint - -o constraints/airflow-$(basename $(each)).txt pyproject.toml &&) true
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-emit-index-url \
		--custom-compile-command "make pins" --extra emulator --group bench --constraint constraints/airflow-$(MAIN).txt \
		-o constraints/bench.txt pyproject.toml

clean:
	rm -rf .venv .venv-* build dist .demo .coverage* .hypothesis .schemathesis .mypy_cache .pytest_cache .ruff_cache

# $(call set-up,interpreter): an environment of the pins and no more, quiet unless it fails.
define set-up
@test -n "$(1)" || { echo "Needs Python 3.11 to 3.14 with its venv module (Debian: apt install python3-venv)." \
	"Name one with make PYTHON=..."; exit 1; }
@echo "Setting up $(@D) with $$($(1) --version) from $<"
@mkdir -p build
@{ { $(@D)/bin/python -m uv --version || { $(1) -m venv --clear $(@D) && $(@D)/bin/pip install --constraint $< uv; }; } && \
	$(@D)/bin/uv pip sync --python $(@D)/bin/python $< && \
	$(@D)/bin/uv pip install --python $(@D)/bin/python --no-deps --no-build-isolation --editable . ; \
} >build/set-up$(@D).log 2>&1 </dev/null || { cat build/set-up$(@D).log; exit 1; }
@touch $@
endef

.venv/.ready: constraints/airflow-$(MAIN).txt $(SET_UP_WITH)
	$(call set-up,$(PYTHON))

# The alternatives that `make bench` measures us beside, on the main release.
.venv-bench/.ready: constraints/bench.txt $(SET_UP_WITH)
	$(call set-up,$(PYTHON))

# An order-only prerequisite: .venv must be there to fall back on, but need not be older.
.venv-%/.ready: constraints/airflow-%.txt $(SET_UP_WITH) | .venv/.ready
	$(call set-up,$(MATRIX_PYTHON))

# A machine needs make and Python 3.11 or newer; everything else is installed in .venv*, from the pins in constraints/.

# The tested Airflow releases: each has pins in constraints/ and a target test-<minor>. To test another one, change it
# here and run `make pins`.
RELEASES = 2.11.2 3.1.8 3.3.2 3.4.0b2
MINORS = $(basename $(RELEASES))
# The release in .venv, for everything but the matrix.
MAIN = 3.3

# The first interpreter that runs: a name on the PATH may be a pyenv shim without a Python behind it.
SUITABLE = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c '$(SUITABLE)' 2>/dev/null && echo $$name && break; done)
# One interpreter for all releases of the matrix; Airflow 2.11 takes nothing newer than 3.12.
MATRIX_PYTHON ?= $(shell for name in python3.11 python3.12 .venv/bin/python; do \
	$$name -c '$(SUITABLE)' 2>/dev/null && echo $$name && break; done)

# Where it is set, each of the many processes compiles Airflow anew.
unexport PYTHONDONTWRITEBYTECODE

BIN = .venv/bin
# The tests of a file share what is costly to start, so a file stays in one process. Files run in their own order: by
# default xdist starts those with few tests last, and the slowest files have few tests.
# A process that ends, as one does whose test hangs, is not replaced: xdist would give the same test to its successors, or
# wait for ever.
PYTEST = python -m pytest -q --numprocesses logical --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# Slow tests wait for Airflow, for killed processes and for locks that expire, so one more process than there are
# processors works meanwhile.
ONE_MORE = --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1))
# Every property with all its examples, and the same ones in every run: a failure is found again by running it again.
ALL_EXAMPLES = --hypothesis-profile ci
# The matrix leaves out the tests of what imports no Airflow, as a release makes no difference to it, and runs
# properties with few examples. The ledger's tests stay: its storage is Airflow's. Shorter matrices are
# make test-matrix MATRIX_MARKS="not slow or release": of the slow tests only those of Airflow itself;
# make test-matrix MATRIX_FOLDERS="tests/airflow tests/package": only these folders.
# The demo runs beside the tests: it waits for Airflow more than it works. Without it: WITHOUT_DEMO=1.
MATRIX_TESTS = $(foreach path,api bench browser changes docs emulator package/test_house.py \
	package/test_time_limits.py sync typing warehouses,--ignore tests/$(path))
SET_UP_WITH = pyproject.toml airflow_provider_talon_cdp/__init__.py
MATRIX = $(addprefix test-,$(MINORS))

# make test-faults: so many steps of histories, from the history of this seed on.
STEPS = 1000000
SEED = 0

.PHONY: help test test-fast test-matrix $(MATRIX) test-faults test-warehouses test-embedded test-browser lint demo demo-guard \
	ui docs docs-serve bench bench-scale pins dist sbom clean always

help:
	@echo "make test-fast        lint, then the quick tests of the engine, in a minute: for every change"
	@echo "make test             lint, then all tests on Airflow $(MAIN), with branch coverage, and DuckDB and Snowflake"
	@echo "make test-matrix      tests and demo on Airflow $(MINORS); one of them: make test-2.11"
	@echo "make test-faults      many histories of faults, kills and sleepers, in half an hour; more: STEPS=5000000 SEED=7"
	@echo "make test-warehouses  tests with MariaDB, Redshift, BigQuery, Databricks and others"
	@echo "make test-browser     the connection form and the tab in a real browser, on Airflow $(MAIN) and 2.11"
	@echo "make lint             ruff, mypy and zizmor"
	@echo "make demo             the provider at work, against a local Talon.One"
	@echo "make demo-guard       the same, and how an empty warehouse is refused"
	@echo "make ui               the same in Airflow's web UI"
	@echo "make docs             the documentation into build/docs; to write it: make docs-serve"
	@echo "make bench            us beside the alternatives, in an hour; to try it: make bench BENCH=--quick"
	@echo "make bench-scale      ten million members through a real Airflow; fewer: BENCH='--members 300000'"
	@echo "make pins             the newest dependencies into constraints/"
	@echo "make dist             wheel and sdist into dist/"
	@echo "make sbom             what a release was tested with, into build/"
	@echo "make clean            remove all that make made"

# Coverage more than doubles the time of a test, so the slow ones and those of many examples run without it. Without the
# databases that are Python packages, which test-warehouses has too: WITHOUT_EMBEDDED=1.
test: lint
	@$(BIN)/$(PYTEST) $(ALL_EXAMPLES) -m "not slow and not hypothesis" --ignore tests/browser --ignore tests/warehouses \
		--cov --cov-report=
	@$(BIN)/coverage report --skip-covered --show-missing --fail-under=95
	@echo "Of this, api/ and hooks/:"
	@$(BIN)/coverage report --include='*/api/*,*/hooks/*' --fail-under=95
	@$(BIN)/$(PYTEST) $(ONE_MORE) $(ALL_EXAMPLES) -m "slow or hypothesis" --ignore tests/browser --ignore tests/warehouses
	@$(if $(WITHOUT_EMBEDDED),,$(MAKE) --no-print-directory test-embedded)

# A test that takes ten seconds on its own is slow, and marked so. Tests of what imports Airflow take longer to set up.
test-fast: lint
	@$(BIN)/$(PYTEST) -m "not slow" --hypothesis-profile dev --timeout 30 $(addprefix tests/,api changes ledger sync)

lint: .venv/.ready
	@$(BIN)/ruff check --quiet --output-format concise
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/mypy --no-error-summary
	@$(if $(wildcard .github),found=$$($(BIN)/zizmor --offline --quiet --no-progress --persona pedantic .github) || { echo "$$found"; exit 1; })

test-matrix: $(MATRIX)

$(MATRIX): test-%: .venv-%/.ready
	@echo "== Airflow $* on $$(.venv-$*/bin/python --version): tests$(if $(WITHOUT_DEMO),, and demo)"
	@mkdir -p build
	@$(if $(WITHOUT_DEMO),true) .venv-$*/bin/python demo/run.py --home .demo/run-$* >build/demo-$*.log 2>&1 & demo=$$!; \
		.venv-$*/bin/$(PYTEST) $(ONE_MORE) --hypothesis-profile dev $(if $(MATRIX_MARKS),-m "$(MATRIX_MARKS)") \
			$(MATRIX_FOLDERS) $(MATRIX_TESTS); \
		tests=$$?; wait $$demo || { cat build/demo-$*.log; exit 1; }; exit $$tests

# The short form of these is part of make test.
test-faults: .venv/.ready
	@$(BIN)/$(PYTEST) $(ALL_EXAMPLES) -o timeout=7200 -o faulthandler_timeout=7260 \
		--faults-long --faults-steps $(STEPS) --faults-seed $(SEED) tests/faults

test-warehouses: .venv-warehouses/.ready
	@.venv-warehouses/bin/$(subst loadfile,loadgroup,$(PYTEST)) $(ALL_EXAMPLES) tests/warehouses $(LANGUAGES) \
		$(if $(WAREHOUSES),-k "$(WAREHOUSES)")

# PostgreSQL in the order of a language. The server of Debian can, that of Python's wheel cannot.
LANGUAGES = tests/mirror/test_order.py::test_a_database_in_the_order_of_a_language_orders_by_bytes_for_us \
	tests/mirror/test_profiles.py::test_a_database_with_a_language_is_asked_for_the_order_of_bytes

# The databases that are Python packages, and need nothing of Debian.
EMBEDDED = duckdb or snowflake
test-embedded: .venv-warehouses/.ready
	@.venv-warehouses/bin/$(subst loadfile,loadgroup,$(PYTEST)) $(ALL_EXAMPLES) tests/warehouses -k "$(EMBEDDED)"

# One process: each release's Airflow is started once, and two at a time are too many for two cores.
test-browser: .venv-browser/.ready .venv-2.11/.ready build/chromium
	@.venv-browser/bin/python -m pytest -q -rs tests/browser

demo: .venv/.ready
	@$(BIN)/python demo/run.py

demo-guard: .venv/.ready
	@$(BIN)/python demo/run.py --guard

ui: .venv/.ready
	@$(BIN)/python demo/ui.py

docs: .venv-docs/.ready
	@mkdir -p build
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict >build/docs.log 2>&1 || { cat build/docs.log; exit 1; }
	@echo "build/docs/index.html"

docs-serve: .venv-docs/.ready
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs serve --strict

bench: .venv-bench/.ready
	@.venv-bench/bin/python bench/all.py $(BENCH)

bench-scale: .venv-bench/.ready
	@.venv-bench/bin/python bench/scale.py $(BENCH)

dist: .venv/.ready
	@$(BIN)/hatchling build

# What a release was tested with, as CycloneDX: the package with the pins of its dependencies.
sbom: .venv-release/.ready
	@.venv-release/bin/uv venv --quiet --clear --python .venv-release/bin/python build/sbom
	@.venv-release/bin/uv pip install --quiet --python build/sbom/bin/python \
		--constraint constraints/airflow-$(MAIN).txt .
	@.venv-release/bin/cyclonedx-py environment build/sbom/bin/python --pyproject pyproject.toml \
		--output-reproducible --output-file build/sbom.cdx.json
	@echo "build/sbom.cdx.json"

# $(call pin,group and extra,name of the file): the newest versions that go with what the constraints on stdin say.
pin = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-emit-index-url \
	--custom-compile-command "make pins" $(1) --constraint - -o constraints/$(2).txt pyproject.toml
# $(call airflow,release): the constraints of a release. A beta's own parts are betas too, and said to be welcome.
airflow = printf '%s\n' apache-airflow==$(1) 'apache-airflow-core>=3.0.0b0' 'apache-airflow-task-sdk>=1.0.0b0'

pins: .venv/.ready
	@$(foreach release,$(RELEASES),$(call airflow,$(release)) | \
		$(call pin,--extra emulator --group dev,airflow-$(basename $(release))) &&) true
	@cat constraints/airflow-$(MAIN).txt | $(call pin,--extra emulator --group bench,bench)
	@cat constraints/airflow-$(MAIN).txt | $(call pin,--extra emulator --group browser,browser)
	@$(call airflow,$(filter $(MAIN).%,$(RELEASES))) | $(call pin,--extra emulator --group warehouses,warehouses)
	@for group in docs release; do \
		$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-emit-index-url \
			--custom-compile-command "make pins" --group $$group -o constraints/$$group.txt || exit; done

clean:
	rm -rf .venv .venv-* build dist .demo .coverage* .hypothesis .schemathesis .mypy_cache .pytest_cache .ruff_cache

# $(call set-up,interpreter): an environment of the pins and nothing else, quiet unless it fails.
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

.venv-browser/.ready: constraints/browser.txt $(SET_UP_WITH)
	$(call set-up,$(PYTHON))

# Playwright's own Chromium is not a Python package; Debian's is installed where it is missing and root makes this.
build/chromium:
	@mkdir -p build
	@command -v chromium >/dev/null || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "Installing chromium" && \
			{ apt-get update && DEBIAN_FRONTEND=noninteractive \
				apt-get install --yes --no-install-recommends chromium; } >build/debian-chromium.log 2>&1 ; } || \
		echo "Without chromium: tests in a browser are skipped"
	@! command -v chromium >/dev/null || touch $@

.venv-docs/.ready: constraints/docs.txt $(SET_UP_WITH)
	$(call set-up,$(PYTHON))

.venv-release/.ready: constraints/release.txt $(SET_UP_WITH)
	$(call set-up,$(PYTHON))

.venv-warehouses/.ready: build/warehouses.txt $(SET_UP_WITH)
	$(call set-up,$(PYTHON))

# Airflow's driver for MySQL has no wheel: it is compiled, against headers that Debian has beside its MariaDB server.
# For test-warehouses both are installed where root makes it, with a PostgreSQL and its languages; where they are missing
# all the same, the tests that need them say so. The file changes, and with it the environment, once they are there.
DEBIAN_PACKAGES = gcc libmariadb-dev locales mariadb-server pkg-config postgresql
HAS_DEBIAN_PACKAGES = command -v mariadbd && pkg-config --exists libmariadb && ls /usr/lib/postgresql/*/bin/initdb \
	/usr/share/i18n/locales/en_US
build/warehouses.txt: constraints/warehouses.txt always
	@mkdir -p build
	@test -z "$(filter test-warehouses,$(MAKECMDGOALS))" || \
		{ $(HAS_DEBIAN_PACKAGES); } >/dev/null 2>&1 || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "Installing $(DEBIAN_PACKAGES)" && \
			{ apt-get update && DEBIAN_FRONTEND=noninteractive \
				apt-get install --yes --no-install-recommends $(DEBIAN_PACKAGES); } >build/debian.log 2>&1 ; } || \
		echo "Without $(DEBIAN_PACKAGES): tests with MySQL, MariaDB or PostgreSQL's languages are skipped"
	@test -z "$(filter test-warehouses,$(MAKECMDGOALS))" || locale -a | grep -qi '^en_US.utf-\?8$$' || \
		{ test "$$(id -u)" = 0 && localedef -i en_US -f UTF-8 en_US.UTF-8; } >>build/debian.log 2>&1 || \
		echo "Without the locale en_US.UTF-8: tests with PostgreSQL in its order are skipped"
	@{ pkg-config --exists libmariadb && cat $< || grep -v '^mysqlclient==' $<; } >$@.new 2>/dev/null
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

# An order-only prerequisite: .venv must be there to fall back on, but need not be older.
.venv-%/.ready: constraints/airflow-%.txt $(SET_UP_WITH) | .venv/.ready
	$(call set-up,$(MATRIX_PYTHON))

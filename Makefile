# The two commands of the README, `make demo` and `make test`, need only Python and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

PYTEST := $(BIN)/python -m pytest -n 2
# Types and shapes are checked at every call of the package; in whole runs that is slow.
CHECKED := --jaxtyping-packages=plantseg_next,scenes,beartype.beartype

.PHONY: demo test unit integration slow lint types imports docs coverage clean

demo: $(INSTALLED)
	rm -rf demo
	$(BIN)/plantseg-next demo --out demo

test: lint types imports unit integration

unit: $(INSTALLED)
	$(PYTEST) -m unit $(CHECKED)

integration: $(INSTALLED)
	$(PYTEST) -m "integration and not slow" tests

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks mkdocs_hooks.py
	$(BIN)/ruff format --check src tests benchmarks mkdocs_hooks.py
	$(BIN)/codespell README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md docs src tests benchmarks

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

# The documentation as a site in build/site; a broken link is an error.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report=term-missing

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.12 names another")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train]" --group dev
	touch $@

clean:
	rm -rf $(VENV) demo build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache

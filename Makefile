# Everything on a fresh machine with Python, pip and make. `make demo` is the place to begin.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-browser test-all bench check format clean

# Workers take up the cores; threads within them, and within the commands that tests start, would only wait.
test test-slow test-browser test-all check: export OMP_NUM_THREADS = 1

demo: $(INSTALLED)  ## watch a small model forget, two minutes on an idle machine
	rm -rf demo-run
	$(BIN)/letheon demo --out demo-run

test: $(INSTALLED)  ## the fast tests, three minutes on two cores
	$(BIN)/python -m pytest -m "not slow and not browser" -n auto --dist worksteal

test-slow: $(INSTALLED)  ## the others, half an hour on two cores
	$(BIN)/python -m pytest -m slow -rs -n auto --dist worksteal

test-browser: $(INSTALLED)  ## the reports in a headless chromium, half a minute; skipped where none is installed
	$(BIN)/python -m pytest -m browser -rs tests/report

test-all: $(INSTALLED)  ## all tests; set LETHEON_DATA for those on real data
	$(BIN)/python -m pytest -n auto --dist worksteal

bench: $(INSTALLED)  ## speed, memory and growth against a plain step, minutes; LETHEON_DATA for real rows
	$(BIN)/python -m bench $(if $(LETHEON_DATA),--data $(LETHEON_DATA))

check: $(INSTALLED)  ## format, lint, types, fast tests
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not browser" -n auto --dist worksteal

format: $(INSTALLED)  ## rewrite the code as the formatter wants it
	$(BIN)/ruff format src tests bench
	$(BIN)/ruff check --fix src tests bench

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo-run

# torch comes first and at the pinned version: a plain newer torch pulls gigabytes of CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Letheon needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

# Two commands: `make demo` looks, cuts and doubts; `make test` is everything CI checks.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1
export WANDB_MODE := disabled

.PHONY: demo test lint docs versions clean

demo: $(VENV)/.installed
	$(BIN)/mechunlearn demo --out report.html

# Two workers of one thread each: with more, threads wait for one another and the suite takes several times as long.
test: export OMP_NUM_THREADS = 1
# Empty, so that the second run finds the rewritten asserts of the first: collecting takes half the time.
test: export PYTHONDONTWRITEBYTECODE =
# In the order of collection: the notebooks, which take longest, come first and leave no worker idle at the end.
test: $(VENV)/.installed-dev
	$(MAKE) -j 2 lint docs
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -q --nbmake --nbmake-timeout=300 notebooks tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The core of the tests at both ends of the declared versions; needs uv, which is in the dev extra.
versions: $(VENV)/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks.versions

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mechunlearn needs Python 3.11 or newer; call make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) docs/_build build dist *.egg-info

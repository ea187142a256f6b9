# Two commands on a fresh machine with Python >= 3.11 and a C compiler: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test clean

# The main job: from nothing to runs/quickstart/report.html (about 15 minutes on two CPU cores).
demo: $(VENV)/.installed
	$(BIN)/pipeline run --config configs/quickstart.yaml --out runs/quickstart

# Style, types and tests (under 10 minutes on two CPU cores).
test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist

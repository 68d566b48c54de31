# demo, test: build .venv when it is missing or its requirements have changed, then run. Nothing else is needed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python run.py
STAMP := $(VENV)/.installed

.PHONY: demo test lint venv

demo: $(STAMP)
	$(RUN) data fetch
	$(RUN) submit harness/experiments/demo.yaml --cluster local
	$(RUN) collect demo
	$(RUN) table demo

test: $(STAMP) lint
	$(VENV)/bin/python -m pytest -q -n 2 --dist loadfile

lint: $(STAMP)
	$(VENV)/bin/ruff check .

venv: $(STAMP)

$(STAMP): requirements-cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: PYTHON=$(PYTHON) is older than 3.11; set PYTHON=")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q "$$(grep '^torch==' requirements-cpu.txt)"
	$(VENV)/bin/python -m pip install -q -r requirements-cpu.txt
	$(VENV)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

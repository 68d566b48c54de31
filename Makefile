# demo, test: build .venv when it is missing or its requirements have changed, then run. Nothing else is needed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python run.py
STAMP := $(VENV)/.installed

.PHONY: demo test lint venv gpu

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

# On a machine with a CUDA device, with a PYTHON that has torch for it and the packages of pyproject.toml: correctness,
# kernels, training throughput, a small comparison; each bounded in time, all measured results under results/. A step
# that fails does not keep the next ones from running, but fails the whole.
gpu:
	mkdir -p results/gpu
	failed=; \
	timeout 600 $(PYTHON) -m pytest -q tests/mixers/test_gdn2_kernels.py tests/mixers/test_gdn2_gpu.py \
	  --junitxml=results/gpu/tests.xml || failed="$$failed correctness"; \
	timeout 590 $(PYTHON) run.py bench kernels --out results/kernels || failed="$$failed kernels"; \
	timeout 400 $(PYTHON) run.py bench throughput --preset 125m --seconds 300 --out results/gpu/throughput.json \
	  || failed="$$failed throughput"; \
	timeout 900 $(PYTHON) run.py submit demo --cluster local --parallel 1 --runs runs/gpu --set train.dtype=bf16 \
	  --set 'suites={recall: {pairs: [4, 8, 16, 32], samples: 500}}' || failed="$$failed comparison"; \
	timeout 60 $(PYTHON) run.py collect demo --runs runs/gpu --out results/gpu/demo --set train.dtype=bf16 \
	  --set 'suites={recall: {pairs: [4, 8, 16, 32], samples: 500}}' || failed="$$failed collect"; \
	timeout 60 $(PYTHON) run.py table demo --out results/gpu/demo || failed="$$failed table"; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

$(STAMP): requirements-cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: PYTHON=$(PYTHON) is older than 3.11; set PYTHON=")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q "$$(grep '^torch==' requirements-cpu.txt)"
	$(VENV)/bin/python -m pip install -q -r requirements-cpu.txt
	$(VENV)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

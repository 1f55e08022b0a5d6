# Every verb; `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PROMOTE_HOME ?= $(CURDIR)/.promote
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock" \
	--extra dev --extra kubernetes --extra postgres --extra s3 --extra serve setup.cfg

## Try it

demo: .venv/complete  ## the whole story, about three minutes; TARGET=docker, podman, or kubernetes with REPOSITORY; KEEP=1 leaves it
	$(BIN)/python -m examples.demo

## Run it

up: .venv/complete  ## start MLflow, the controller and the gateway in the background
	$(BIN)/mlflow-promote up --detach

down: .venv/complete  ## stop all of it
	$(BIN)/mlflow-promote down

promote: .venv/complete  ## make a version live: make promote MODEL=churn VERSION=7
	@test -n "$(MODEL)" -a -n "$(VERSION)" || { echo "usage: make promote MODEL=churn VERSION=7" >&2; exit 2; }
	$(BIN)/mlflow-promote promote "$(MODEL)" "$(VERSION)"

status: .venv/complete  ## what is live and what is under way; MODEL=churn for one model
	$(BIN)/mlflow-promote status $(if $(MODEL),"$(MODEL)")

## Work on it

test: .venv/complete  ## every test; ARGS="tests/unit -k rollout" for some
	$(BIN)/pytest $(ARGS)

nightly: .venv/complete  ## the tests that take minutes each, with the engines that are there
	$(BIN)/pytest -m nightly $(ARGS)

bounds: .venv/complete  ## the registry suite at the oldest MLflow that setup.cfg allows
	tests/mlflow_bounds.sh

check: .venv/complete  ## style, types, import rule, and that the lock fits setup.cfg
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@cp requirements.lock .venv/requirements.lock && $(LOCK) -o .venv/requirements.lock && \
		diff -q requirements.lock .venv/requirements.lock || { echo "requirements.lock does not fit setup.cfg: run 'make lock'" >&2; exit 1; }

format: .venv/complete  ## put the code into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/complete  ## measure, and write benchmarks/results/*.json
	$(BIN)/python -m benchmarks.run

lock: .venv/complete  ## resolve setup.cfg again and write requirements.lock
	$(LOCK) -o requirements.lock

## Set-up

.venv: .venv/complete  ## make the virtual environment from the lock

.venv/complete: requirements.lock setup.cfg
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the locked packages into .venv (a minute or two)"
	@awk '/^uv==/ {found = 1} found {print} found && !/\\$$/ {exit}' requirements.lock > .venv/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:  ## remove the environment and everything that was made
	rm -rf .venv .promote build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

help:  ## list the verbs
	@awk '/^## /{printf "\n%s\n", substr($$0, 4)} /^[.a-zA-Z_-]+:.*  ## /{split($$0, part, ":.*  ## "); printf "  make %-9s %s\n", part[1], part[2]}' Makefile

.PHONY: .venv bench bounds check clean demo down format help lock nightly promote status test up

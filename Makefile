# `make run` and `make test` do everything on a machine with Python and nothing else; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 7860
CONFIG ?= training/configs/centralperk.toml
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run scene train hub-demo chromium test lint format clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

run: $(VENV)/installed-space ## install what is needed and open the web page at http://127.0.0.1:7860 (PORT=... for another)
	@$(BIN)/cpgpt serve --port $(PORT)

scene: $(VENV)/installed ## type a scene on the terminal
	@$(BIN)/cpgpt scene

train: $(VENV)/installed-train ## train our model (CONFIG=training/configs/NAME.toml for another)
	$(BIN)/python -m training.train $(CONFIG)

hub-demo: $(VENV)/installed-test ## the README's "Publish your own", against a stand-in for the Hugging Face Hub
	@$(BIN)/python -m tests.hub_demo

test: $(VENV)/installed-test lint chromium ## lint, check types, run all tests
	$(BIN)/python -m pytest

chromium: # the browser that the tests of the page drive: Debian's, where there is none and we may install one
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || command -v chromium-browser >/dev/null || { \
	  command -v apt-get >/dev/null && echo "installing Chromium for the browser tests" && \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo) && $$SUDO apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

lint: $(VENV)/installed-test ## lint and check types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what tools left behind (not data/ and runs/)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what the model needs into $(VENV) (a minute or two, once)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-space: $(VENV)/installed
	@echo "installing what the web page needs into $(VENV)"
	@$(PIP) --editable '.[space]'
	@touch $@

$(VENV)/installed-train: $(VENV)/installed
	@$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "installing what the tests need into $(VENV)"
	@$(PIP) --editable '.[test]'
	@touch $@

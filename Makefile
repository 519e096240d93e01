SHELL := /bin/bash
.DEFAULT_GOAL := help
export HF_HUB_OFFLINE := 1
RUN := . ./env.sh &&
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help setup demo test lint bench docs clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: ## Set up everything and build the package; the second time takes seconds
	@scripts/setup.sh

demo: setup ## Run one PushT episode over ROS 2 and write runs/<time>/
	@$(RUN) worldforge demo pusht $(DEMO_ARGS)

test: setup ## Run the tests
	@$(RUN) pytest $(TEST_ARGS)

lint: setup ## Check style and types
	@$(RUN) ruff check . && ruff format --check . && mypy

bench: setup ## Latency of every stage: how much is ROS, how much is model
	@$(RUN) python benchmarks/latency.py $(BENCH_ARGS)

docs: ## Build the pages of docs/ into build/docs, warnings are errors
	@scripts/docs.sh

clean: ## Remove builds and the virtual environment, keep runs/
	rm -rf build install log .venv .venv-docs env.sh

# Every target but bench-gpu makes .venv by itself, from constraints.txt.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo-out
JOBS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))  # some tests wait
READY := .venv/.ready

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	mkdir -p .venv/typing && ln -sfn ../.. .venv/typing/cocoseg  # any folder name: mypy sees 'cocoseg'
	touch $@

venv: $(READY)  ## Create .venv and install cocoseg into it, editable (3 minutes)

demo: $(READY)  ## Draw a small COCO data set; prepare, train, infer, eval (5 minutes, 2 cores)
	$(BIN)/cocoseg demo --output $(DEMO)

test: $(READY)  ## Run the short tests, 7 minutes on 2 idle cores; JOBS=N processes, 8 at most
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 -m "not long and not browser"

test-browser: $(READY)  ## Test the page of 'cocoseg view' in chromium, 2 minutes; skipped where there is none
	$(BIN)/python -m pytest -m browser

test-long: $(READY)  ## Run every test, the full fault matrices too, an hour on 2 cores
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8

check: $(READY) docs  ## Format, lint, types, layers, documentation; no tests (2 minutes)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=.venv/typing $(BIN)/mypy --package cocoseg --exclude '/(tests|benchmarks|docs)/'
	$(BIN)/lint-imports

docs: $(READY)  ## Build the documentation as a site, site/index.html (15 seconds)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir site

bench: $(READY)  ## Measure the ratios that benchmarks/RESULTS.md quotes; PART=prepare, scale, stream, loss, loop, model, infer
	$(BIN)/python benchmarks/run.py $(PART)

bench-gpu:  ## Check and measure on one GPU, 9 minutes; needs no .venv and no network (docs/gpu.md)
	$(PYTHON) benchmarks/gpu/run.py $(PART)

clean:  ## Remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build site *.egg-info

.PHONY: help venv demo test test-browser test-long check docs bench bench-gpu clean

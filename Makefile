# xaimed: `make help` lists the targets. Everything runs in .venv, which the first target makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/experiments/quick_smoke.yaml
READY := $(VENV)/.ready

.PHONY: help setup run test train-smoke eval-smoke explain-smoke report lab docs notebooks bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(READY): settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "xaimed needs Python 3.10 or newer; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet --editable '.[dev]'
	@touch $(READY)

setup: $(READY) ## make .venv with xaimed and the tools to develop it

run: $(READY) ## the whole pipeline on the embedded synthetic data; prints the report's path
	$(BIN)/xaimed --config $(CONFIG) run

train-smoke: $(READY) ## train on the embedded data
	$(BIN)/xaimed --config $(CONFIG) train

eval-smoke: $(READY) ## evaluate, training first where needed
	$(BIN)/xaimed --config $(CONFIG) eval

explain-smoke: $(READY) ## explain, evaluating first where needed
	$(BIN)/xaimed --config $(CONFIG) explain

report: $(READY) ## make the report, with every stage it needs
	$(BIN)/xaimed --config $(CONFIG) report

lab: $(READY) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

notebooks: $(READY) ## execute, clean and export the notebooks; README.md from the index
	$(BIN)/python scripts/notebooks.py build
	$(BIN)/python scripts/notebooks.py readme

# two processes side by side, a core each
test: export OMP_NUM_THREADS = 1
test: $(READY) ## the gate: notebooks, tests, pages
	$(BIN)/python scripts/notebooks.py check
	$(BIN)/nbdev_test --n_workers 2 --pause 0
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests
	$(BIN)/python scripts/notebooks.py docs --check

bench: $(READY) ## the benchmarks, into benchmarks/RESULTS.md (two hours, on a quiet machine)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/all.py

docs: $(READY) ## the documentation site, in _docs/
	$(BIN)/python scripts/notebooks.py docs

clean: ## remove what runs, builds and tests left (not .venv, not data/)
	rm -rf _proc _docs _site build dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	find artifacts -mindepth 1 -maxdepth 1 -not -name README.md -not -name showcase -exec rm -rf {} +

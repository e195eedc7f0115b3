# `make` or `make help` lists what can be made.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DONE := $(VENV)/.installed
DEMO := outputs/demo
EVIDENCE := outputs/published
REPORTS := $(EVIDENCE)/reports
SMALL := $(EVIDENCE) --teacher resnet56 --student resnet20 --epochs 3

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check format results clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(DONE)  ## make .venv with everything in it (about two minutes; the others do it when it is absent)

$(DONE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(DONE)  ## a teacher and three students on scikit-learn's digits: a table and a picture, in a few minutes
	$(RUN) src/train.py data=digits distiller=none teacher=none student=resnet20 hydra.run.dir=$(DEMO)/teacher
	$(RUN) scripts/teachers.py install $(DEMO)/teacher --force
	$(RUN) src/train.py -m data=digits distiller=none,kd,mcld teacher=resnet20 student=resnet8 seed=0,1 \
	    hydra.sweep.dir=$(DEMO)/students
	$(RUN) scripts/table.py $(DEMO)/students --picture $(DEMO)/comparison.png | tee $(DEMO)/table.md
	@echo "The picture is $(DEMO)/comparison.png"

test: $(DONE)  ## the tests, in about ten minutes; those on CIFAR-100 run where DISTILL_DATA names its folder
	$(RUN) -m pytest --numprocesses 2 --dist loadfile

test-slow: $(DONE)  ## the tests that take longer
	$(RUN) -m pytest -m slow

check: $(DONE)  ## style, types and import rules
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(DONE)  ## put the code into its form
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

results: $(DONE)  ## RESULTS.md and the tables and pictures beside it, again from the tracked evidence
	$(RUN) scripts/table.py $(EVIDENCE) --output RESULTS.md
	$(RUN) scripts/table.py $(SMALL) --table 7 --output $(REPORTS)/table7.md --html $(REPORTS)/table7.html
	$(RUN) scripts/table.py $(SMALL) --table 8 --output $(REPORTS)/table8.md --html $(REPORTS)/table8.html
	$(RUN) scripts/figures.py table7 $(SMALL) --output $(REPORTS)/table7.png
	$(RUN) scripts/figures.py figure3 $(EVIDENCE) --epochs 5 --output $(REPORTS)/figure3.png
	$(RUN) scripts/figures.py figure5 $(SMALL) --output $(REPORTS)/figure5.png
	$(RUN) scripts/figures.py search $(EVIDENCE) --output $(REPORTS)/search.png

clean:  ## remove caches and the environment, but no results
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

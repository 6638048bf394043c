# Thin: every target works from .venv, which setup makes. PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
RUN = .venv/bin/python

.PHONY: setup demo test test-all lint bench

setup: .venv/ready

.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: setup
	@bash runners/demo_cpu.sh

# ARGS goes to pytest: ARGS=--resume goes on with a run that was stopped, ARGS=--lf takes what failed.
test: setup
	$(RUN) -m pytest -p tests.resuming -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: setup
	$(RUN) -m pytest -p tests.resuming -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

bench: setup
	$(RUN) -m benchmarks.shard_memory
	$(RUN) -m benchmarks.byte_accounting pydocs byte260 data/packagedocs_sp1024

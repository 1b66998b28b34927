# Every target makes its own environment first; nothing needs to be installed by hand. gpu-check takes what is there: it may run where
# nothing can be fetched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow slurm-check lint benchmark benchmarks wire privacy-check gpu-check clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

install: $(INSTALLED) ## make the environment in .venv; every other target but gpu-check and clean does so first

demo: $(INSTALLED) ## the main job on the embedded default, two ranks: pfedmma beside zeroshot, local and fedavg_mma; a minute
	$(BIN)/python launch/demo.py

# In the order of their names: files of few tests would come last otherwise, and they are the slowest.
test: $(INSTALLED) ## all tests but those that take long, four files at a time; a quarter of an hour on two cores
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED) ## the tests that take long: a rank is killed at 20 moments, benchmarks are run, and others; ten minutes
	PFEDMMA_SLOW_TESTS=1 $(BIN)/python -m pytest -m slow -n 3 --dist loadfile

slurm-check: $(INSTALLED) ## the batch file on a real SLURM on this machine (root, Debian packages), minutes; skipped where it cannot be had
	$(BIN)/python -m tests.slurm.check

lint: $(INSTALLED) ## style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

benchmark: $(INSTALLED) ## the time of an exchange between two ranks
	$(BIN)/torchrun --standalone --nproc_per_node=2 benchmarks/communication.py

benchmarks: benchmark ## all benchmarks that need neither files, root nor a GPU; minutes each (benchmarks/README.md)
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/local_training.py
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/local_training.py --evaluation --clients 10
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/round_time.py
	$(BIN)/python benchmarks/scaling.py overhead linear registered ranks long
	$(BIN)/python benchmarks/long_run.py
	$(BIN)/torchrun --standalone --nproc_per_node=2 benchmarks/balance.py
	$(BIN)/python benchmarks/server_rules.py

wire: $(INSTALLED) ## bytes at network interfaces beside the ledger (Linux, root, iproute2)
	$(BIN)/python benchmarks/wire.py

privacy-check: $(INSTALLED) ## what an upload tells under a shared and an own start; ends with an error if a bound is broken; minutes
	$(BIN)/python benchmarks/privacy.py --uploads shared,own --check

gpu-check: ## on a machine with GPUs: the tests marked gpu and the benchmarks, within 9 minutes
	PYTHONPATH=$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH} $(if $(wildcard $(INSTALLED)),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py

clean: ## remove the environment and what builds and tools leave; runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

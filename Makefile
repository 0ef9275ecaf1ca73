# make demo: data, SFT, GRPO, evaluation and comparison of a tiny model on two CPU processes.
# make test: every default test. Both install what they need into .venv and reuse it.
PYTHON ?= python3
SEED ?= 0
DEMO ?= demo
BIN := .venv/bin
LAUNCH = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/accelerate launch --config_file accelerate_configs/zero2_2xcpu.yaml

.PHONY: demo test lint clean

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	# torch first and pinned: resolving it as a dependency of others may bring a build for GPUs of several gigabytes
	$(BIN)/pip install --quiet $$(grep '^torch==' requirements.txt)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

test: .venv/installed
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

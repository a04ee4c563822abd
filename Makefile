# Two commands on a fresh machine: `make run` and `make test`. Everything else is listed by `make help`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=
TASKS ?= mlm causal_lm mt beit asr vl
SEEDS ?= 1,2
TABLE ?= runs/table
# uv unpacks these 5 GB in a fifth of pip's time; pip knows package indexes that only its own configuration names.
WHAT := --no-deps -r requirements.lock --editable .

.DEFAULT_GOAL := help
TABLES ?= $(basename $(notdir $(wildcard conf/paper/*.yaml)))
SCALE ?= mini

.PHONY: help run compare table paper test test-all lint docs bench clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^uv==' requirements.lock)
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(WHAT) || $(BIN)/python -m pip install $(WHAT)
	@touch $@

run: $(INSTALLED) ## set up, then train Magneto on real speech (ARGS="optimizer.lr=2e-3" overrides)
	$(BIN)/python run.py task=asr backbone=magneto $(ARGS)

compare: $(INSTALLED) ## Post-LN, Pre-LN and Magneto with two seeds each, one after the other, then a report
	$(BIN)/python run.py -m task=asr experiment=asr/placements backbone=post_ln,pre_ln,magneto seed=1,2 $(ARGS)

# Data is prepared first, so that no run's minutes hold it. A task that fails keeps no other from running; an interrupted
# run (130) ends everything, to go on when the command is repeated.
table: $(INSTALLED) ## six tasks, three backbones, two seeds: one table; hours (TASKS="mlm mt" SEEDS=1,2,3 ARGS=...)
	@failed=; for task in $(TASKS); do \
	  of="task=$$task experiment=$$task/placements"; \
	  $(BIN)/python run.py $$of mode=prepare $(ARGS) && \
	  $(BIN)/python run.py -m $$of backbone=post_ln,pre_ln,magneto seed=$(SEEDS) runs_dir=$(TABLE) $(ARGS); \
	  case $$? in 0) ;; 130) exit 130;; *) failed="$$failed $$task";; esac; \
	done; \
	$(BIN)/python -m magneto.report $(TABLE) --out $(TABLE)/report && test -z "$$failed" || \
	  { test -z "$$failed" || echo "not all runs of these tasks were made, see above:$$failed" >&2; exit 1; }

# Each table goes on where it was; one with a failed run keeps no other from running.
paper: $(INSTALLED) ## the paper's tables in small; hours (TABLES="table5 table7" SCALE=mini ARGS=...)
	@failed=; for table in $(TABLES); do \
	  $(BIN)/python run.py paper=$$table scale=$(SCALE) $(ARGS); \
	  case $$? in 0) ;; 130) exit 130;; *) failed="$$failed $$table";; esac; \
	done; test -z "$$failed" || { echo "not all runs of these tables were made, see above:$$failed" >&2; exit 1; }

TEST := OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -n auto --dist worksteal

test: $(INSTALLED) ## set up, then run the fast tests (3 minutes on 2 cores)
	$(TEST) -m "not slow" tests/unit tests/integration/test_golden_curves.py tests/integration/test_old_exports.py $(ARGS)

test-all: $(INSTALLED) ## run every test
	$(TEST) $(ARGS)

docs: $(INSTALLED) ## build the documentation site into docs/_build/html; a dead link fails
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . docs/_build/html
	@echo docs/_build/html/docs/index.html

lint: $(INSTALLED) ## format, lint, types and layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy magneto
	$(BIN)/lint-imports

bench: $(INSTALLED) ## the training step of the backbone against its peers, in one run
	$(BIN)/python benchmarks/backbone.py

clean: ## remove the environment (runs/ and data/ stay)
	rm -rf $(VENV)

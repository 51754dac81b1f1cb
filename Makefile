PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install quickstart loop sprites sprites-report test quality format clean

install: $(INSTALLED)

# The constraints name one version of torch, so that pip does not fetch a newer build with all of its CUDA libraries.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing trl-focus and its dependencies into .venv: this takes a few minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq -c constraints.txt -e ".[examples,quality,tensorboard,test]"
	@touch $@

quickstart: install
	$(BIN)/python -m examples.sprites.quickstart

loop: install
	$(BIN)/python -m examples.sprites.loop

# All of it takes hours and may be stopped at will. SEEDS, METHODS or REGIMES re-run those cells of the main table alone, as in
# `make sprites SEEDS=0 METHODS=dpo,focus REGIMES=nuisance`, and store nothing.
CELLS := $(if $(SEEDS),--seeds $(SEEDS)) $(if $(METHODS),--methods $(METHODS)) $(if $(REGIMES),--regimes $(REGIMES))

sprites: install
ifeq ($(strip $(CELLS)),)
	$(BIN)/python -m examples.sprites.compare tune
	$(BIN)/python -m examples.sprites.report --choose
	$(BIN)/python -m examples.sprites.compare main
	$(BIN)/python -m examples.sprites.compare repeat
	$(BIN)/python -m examples.sprites.compare ablate
	$(MAKE) sprites-report
else
	$(BIN)/python -m examples.sprites.compare main --again $(CELLS)
endif

sprites-report: install
	$(BIN)/python -m examples.sprites.report
	$(BIN)/python -m examples.sprites.figures

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# Times differ from machine to machine: the ratios are what counts
bench: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.training_step
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.training_step --families flux2_klein --sizes small --options
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.focus_overhead
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.steady_memory
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.complexity

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find examples tests trl_focus -name __pycache__ -prune -exec rm -rf {} +

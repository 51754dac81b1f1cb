PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install quickstart test quality format clean

install: $(INSTALLED)

# The constraints name one version of torch, so that pip does not fetch a newer build with all of its CUDA libraries.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing trl-focus and its dependencies into .venv: this takes a few minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq -c constraints.txt -e ".[examples,quality,tensorboard,test]"
	@touch $@

quickstart: install
	$(BIN)/python -m examples.quickstart

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find examples tests trl_focus -name __pycache__ -prune -exec rm -rf {} +

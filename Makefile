# Every target sets up what it needs; `make test` and `make demo` are the two that a newcomer wants.
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-slow test-oldest lint format bench clean

demo: $(VENV)/.ready
	$(BIN)/pixelrefer-fast demo --out out/demo

# `pytest`, not `python -m pytest`: the repository root stays off sys.path, since it holds a folder named like Hugging
# Face's `kernels` package
test: $(VENV)/.ready
	$(BIN)/pytest -m "not slow and not gpu"

test-slow: $(VENV)/.ready
	$(BIN)/pytest -m "slow and not gpu"

# the oldest supported torch, triton and transformers, in an environment of their own
test-oldest:
	tools/make_venv.sh $(OLDEST) torch==2.11.0 triton==3.6.0 transformers==5.17.0
	$(OLDEST)/bin/pytest -m "not slow and not gpu"

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# REFERENCE=DIR compares with the reference's own code from a checkout
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/region_stage.py $(if $(REFERENCE),--reference $(REFERENCE))

clean:
	rm -rf $(VENV) $(OLDEST) build *.egg-info out

$(VENV)/.ready: pyproject.toml tools/make_venv.sh
	tools/make_venv.sh $(VENV)
	@touch $@

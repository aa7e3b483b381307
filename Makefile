# Bare `make` lists the targets. `.venv` is built once, by its stamp file.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
DOCS_STAMP := $(VENV)/.docs
OLDEST ?= torch==2.11.0
OLDEST_VENV := .venv-oldest
BUILD_VENV := .venv-build
EMPTY_VENV := .venv-empty
GOLDEN ?= nflows==0.14 normflows==1.7.3 FrEIA==0.2 zuko==1.6.0
GOLDEN_VENV := .venv-golden
GOLDEN_STAMP := $(GOLDEN_VENV)/.stamp
EXAMPLES ?= 400
TESTS ?=
PEERS ?= memcnn==1.5.2 revlib==1.7.2 nflows==0.14 normflows==1.7.3
PEERS_STAMP := $(VENV)/.peers
REPRODUCE_STAMP := $(VENV)/.reproduce
STEADY := KINETO_LOG_LEVEL=99 MALLOC_TRIM_THRESHOLD_=10000000000 MALLOC_MMAP_THRESHOLD_=10000000000
export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test quick thorough oldest golden check docs package bench reproduce figures clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  one test, and first what failed last:"
	@echo "    $(BIN)/python -m pytest -x --ff tests/unit/test_grid.py -k snapping"

# A pinned version may vanish from the package index; the ranges of pyproject.toml stay.
INSTALL := $(BIN)/python -m pip install --quiet
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "$(TORCH)"
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(INSTALL) --constraint $(VENV)/constraints.txt --editable '.[mri,dev,bench,examples]' || \
	{ echo "constraints.txt can't be met: taking what pyproject.toml allows"; \
	$(INSTALL) --editable '.[mri,dev,bench,examples]'; }
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(INSTALL) --editable '.[docs]'
	touch $@

# Peers need torch, numpy and matplotlib alone, whatever they ask for. Benchmarks run
# without them.
$(PEERS_STAMP): $(STAMP)
	@all=yes; for peer in $(PEERS); do \
	$(INSTALL) --no-deps "$$peer" || \
	{ all=no; echo "$$peer can't be installed: the benchmarks leave it out"; }; done; \
	test $$all = no || touch $@

$(REPRODUCE_STAMP): $(STAMP)
	@$(INSTALL) --editable '.[reproduce]' && touch $@ || \
	echo "sigpy can't be installed: the comparison leaves l1-wavelet out"

demo: $(STAMP) ## train an i-RIM on real anatomy, reconstruct an unseen subject, evaluate, draw
	$(STEADY) $(BIN)/python -m mri_example demo

test: $(STAMP) ## run the tests (hypothesis profile "ci"); DEVICE=cuda runs them on a GPU
	HYPOTHESIS_PROFILE=ci OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

quick: $(STAMP) ## run the laws, unit and main integration tests on few drawn examples (a few minutes)
	HYPOTHESIS_PROFILE=quick OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
	-m "not slow" tests/laws tests/unit tests/integration

thorough: $(STAMP) ## run TESTS with EXAMPLES drawn examples for each law, and count them
	EXAMPLES=$(EXAMPLES) HYPOTHESIS_PROFILE=thorough OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -o faulthandler_timeout=0 $(TESTS)

oldest: ## run the library's tests with the oldest PyTorch that is supported (OLDEST=torch==2.11.0)
	test -x $(OLDEST_VENV)/bin/python || $(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet "$(OLDEST)" numpy pytest pytest-xdist hypothesis
	HYPOTHESIS_PROFILE=quick OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -n 2 --dist worksteal \
	-m "not slow" tests/unit tests/laws tests/integration

# These libraries import what is listed before them, whatever else they ask for.
$(GOLDEN_STAMP):
	test -x $(GOLDEN_VENV)/bin/python || $(PYTHON) -m venv $(GOLDEN_VENV)
	$(GOLDEN_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	$(GOLDEN_VENV)/bin/python -m pip install --quiet numpy scipy matplotlib einops pytest pytest-xdist hypothesis
	$(GOLDEN_VENV)/bin/python -m pip install --quiet --no-deps $(GOLDEN)
	touch $@

golden: $(GOLDEN_STAMP) ## write the numbers of nflows, normflows, FrEIA and zuko, and test the adapters with them
	$(GOLDEN_VENV)/bin/python -m tests.golden.peers
	HYPOTHESIS_PROFILE=quick OMP_NUM_THREADS=1 $(GOLDEN_VENV)/bin/python -m pytest -n 2 --dist worksteal \
	tests/golden tests/compat/test_freia_itself.py tests/compat/test_flow_libraries.py

check: $(STAMP) ## lint, format, types, floors, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: $(DOCS_STAMP) ## build the documentation site into site/
	$(BIN)/zensical build --strict --clean

package: ## build wheel and sdist, check them, use the wheel in an empty environment
	rm -rf dist $(EMPTY_VENV)
	test -x $(BUILD_VENV)/bin/python || $(PYTHON) -m venv $(BUILD_VENV)
	$(BUILD_VENV)/bin/python -m pip install --quiet build twine mypy
	$(BUILD_VENV)/bin/python -m build
	$(BUILD_VENV)/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(EMPTY_VENV)
	$(EMPTY_VENV)/bin/python -m pip install --quiet "$(TORCH)" dist/*.whl
	$(BUILD_VENV)/bin/python tests/installed_package.py $(EMPTY_VENV)/bin/python dist

bench: $(STAMP) $(PEERS_STAMP) ## measure memory, time, overhead, layers, budgets, drift, flows and converted models; results in benchmarks/results/
	$(STEADY) $(BIN)/python -m benchmarks.memory
	$(STEADY) $(BIN)/python -m benchmarks.time
	$(STEADY) $(BIN)/python -m benchmarks.overhead
	$(STEADY) $(BIN)/python -m benchmarks.layers
	$(STEADY) $(BIN)/python -m benchmarks.budget
	$(STEADY) $(BIN)/python -m benchmarks.depth
	$(STEADY) $(BIN)/python -m benchmarks.flows
	$(STEADY) $(BIN)/python -m benchmarks.convert

reproduce: $(STAMP) $(REPRODUCE_STAMP) ## compare the i-RIMs with RIM, U-Net and l1-wavelet on an unseen head: three seeds
	$(STEADY) $(BIN)/python -m benchmarks.reproduce

figures: $(STAMP) ## draw the figures of README and docs from benchmarks/results/
	$(BIN)/python -m benchmarks.figures

clean: ## remove everything that can be made again
	rm -rf $(VENV) $(OLDEST_VENV) $(GOLDEN_VENV) $(BUILD_VENV) $(EMPTY_VENV) site runs dist *.egg-info \
	.hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .cache

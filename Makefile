# make demo   install, then the whole chain on sample_data/
# make test   install, then every test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check
OUT ?= demo
# One thread a process: two test processes with two threads each would wait for one another on two cores.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q
.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast lint bench bench-gpu benchmarks shipped-model validate-small robustness sample-data clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

install: $(VENV)/.installed ## a virtual environment with the tool and everything it needs

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'make: Python 3.11 or newer is needed; set PYTHON=<path>'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[test,lint]'
	@touch $@

demo: install ## the whole chain on sample_data/, under 4 minutes; ends by naming the page to open
	$(BIN)/python -m pipelines.demo --output $(OUT)

test: install ## every test
	$(TEST)

test-fast: install ## the tests that train nothing and need no data, under a minute
	$(TEST) -m "not slow and not real_data"

lint: install ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install ## speed and memory, on sample_data and on ANOMALY_DATA where it is set
	$(BIN)/python -m pipelines.benchmark.speed.cpu

bench-gpu: install ## speed of training and scoring of every network on the GPU, or of small ones on a CPU
	$(BIN)/python -m pipelines.benchmark.speed.gpu

benchmarks: install ## repeat all measurements of docs/benchmarks.md, from ANOMALY_DATA; hours, continues where interrupted
	@test -n "$$ANOMALY_DATA" || { echo 'make: set ANOMALY_DATA to the folder that holds ixi/, pathology/ and lesion_shapes/'; exit 1; }
	$(BIN)/anomaly benchmark --config ixi --data "$$ANOMALY_DATA" --output work/ixi
	$(BIN)/anomaly benchmark --config families --data sample_data --output work/families
	$(BIN)/python -m pipelines.docs_pages.benchmark_tables --output work/ixi

shipped-model: install ## train, compact and calibrate the model that comes with the package, from ANOMALY_DATA; COHORT = an ingested cohort
	@test -n "$$ANOMALY_DATA" || { echo 'make: set ANOMALY_DATA to the folder that holds ixi/'; exit 1; }
	$(BIN)/python -m pipelines.shipped_models.make default --data "$$ANOMALY_DATA" --work work/shipped_model $(if $(COHORT),--cohort $(COHORT))

validate-small: install ## the complete small validation tasks, an hour or so; mnist-small needs ANOMALY_DATA
	@test -n "$$ANOMALY_DATA" || { echo 'make: set ANOMALY_DATA to the folder that holds mnist/'; exit 1; }
	$(BIN)/anomaly validate digits
	$(BIN)/anomaly validate avatars
	$(BIN)/anomaly validate mnist

robustness: install ## damage inputs and kill commands, nightly size; writes docs/robustness.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.nightly

sample-data: install ## make sample_data/ again
	$(BIN)/python -m sample_data.make

clean: ## remove what the targets above made (not the environment)
	rm -rf demo work validation build .mypy_cache .ruff_cache .pytest_cache

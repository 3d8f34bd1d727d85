# Every target works from a fresh clone: the environment is made first, and again when pyproject.toml has changed.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
CLIENTS = $(VENV)/.clients

# Two test processes of one thread each: more threads would only wait for each other.
TESTS = OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo pictures docs test test-faults test-clients lint format type bench gpu study architectures

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Repair a small network that memorised wrong labels, from start to end, in demo/
	$(BIN)/sap demo demo

pictures: demo ## Draw the README's pictures anew from the demo
	$(BIN)/python scripts/make_pictures.py demo docs/pictures

test: $(INSTALLED) ## Run the tests
	$(TESTS)

test-faults: $(INSTALLED) ## Run the tests that take minutes: of killing, interrupting and starving the program, and of the README's commands
	$(TESTS) --hypothesis-profile thorough tests/faults

test-clients: $(CLIENTS) ## Run the tests on files of other tools: transformers, timm, torchvision, Lightning, accelerate, fastai
	$(TESTS) tests/clients tests/commands/test_input_forms.py

docs: $(INSTALLED) ## Write docs/commands.md, the man page and the JSON schemas from the commands themselves
	$(BIN)/python -m scripts.build_docs

lint: $(INSTALLED) ## Check the style, the format, and that each wing imports only those below it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code and sort the imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(INSTALLED) ## Check the types
	$(BIN)/mypy

bench: $(INSTALLED) ## Measure how long the stages of a repair take
	$(BIN)/python -m benchmarks.speed

gpu: $(INSTALLED) ## Compare the commands on a GPU with the CPU, time them, and repair the paper's setting, in some eight minutes
	$(BIN)/python -m benchmarks.gpu

study: $(INSTALLED) ## Measure what repairs gain over kinds of noise, networks and methods: hours, in pieces
	$(BIN)/python -m benchmarks.study

architectures: $(INSTALLED) ## See which weights are projected in every family of timm and torchvision, and write docs/architectures.md
	$(BIN)/python -m benchmarks.architectures

# The other tools are large, and only their own tests need them.
$(CLIENTS): $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[clients]'
	touch $@

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

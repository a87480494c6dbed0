# The verbs for people. No logic of its own: every verb is one kiln command in Kiln's own tool environment.
STACK ?= cpu
MODEL ?=
PYTHON ?= python3

KILN = .kiln/venv/bin/kiln
PYTEST = .kiln/venv-dev/bin/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help image verify lock fetch render plan engine-down tools dev test test-fast lint clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo "  STACK=$(STACK)   the stack to work on (pins/STACK.toml)"

image: tools ## fetch, build and verify the images of STACK
	@$(KILN) image $(STACK) $(if $(MODEL),--model $(MODEL))

verify: tools ## look at the built images of STACK again
	@$(KILN) verify $(STACK) $(if $(MODEL),--model $(MODEL))

lock: tools ## resolve the pins of STACK anew and write the lock
	@$(KILN) lock $(STACK)

fetch: tools ## download the locked inputs of STACK
	@$(KILN) fetch $(STACK)

render: tools ## write the Dockerfiles of STACK into images/
	@$(KILN) render $(STACK)

plan: tools ## show the components of STACK and their build keys
	@$(KILN) plan $(STACK)

engine-down: tools ## stop the private container engine, if kiln started one
	@$(KILN) engine down

tools: ## make Kiln's tool environment (.kiln/venv) from hash-locked wheels
	@PYTHON=$(PYTHON) ci/make-venv .kiln/venv requirements/tools.txt

dev: ## the same with what tests and linters need (.kiln/venv-dev)
	@PYTHON=$(PYTHON) ci/make-venv .kiln/venv-dev requirements/dev.txt

test-fast: dev ## unit and golden tests: seconds, offline, no engine
	@$(PYTEST) -q -n 2 tests/unit tests/golden

test: dev lint ## all tests: with a real engine, and `make image STACK=cpu` end to end
	@$(PYTEST) --durations=5 tests

lint: dev ## ruff, mypy, hadolint; and whether what is rendered or generated is current
	@.kiln/venv-dev/bin/ruff check .
	@.kiln/venv-dev/bin/mypy
	@.kiln/venv-dev/bin/hadolint --config ci/hadolint.yaml images/*/Dockerfile
	@.kiln/venv-dev/bin/kiln --quiet render cpu --check

clean: ## stop the private engine and remove everything kiln made (.kiln)
	@if [ -x $(KILN) ]; then $(KILN) engine down; fi
	@rm -rf .kiln

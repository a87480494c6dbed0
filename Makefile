# The verbs for people. No logic of its own: every verb is one kiln command in Kiln's own tool environment.
STACK ?= dsv4-mhc
MODEL ?=
DATA ?=
PYTHON ?= python3

# The images of a ROCm stack are called after it: rocm-base of dsv4-mhc, rocm-upstream-base of dsv4-mhc-upstream.
IMAGES = $(patsubst dsv4-mhc%,rocm%,$(STACK))

KILN = .kiln/venv/bin/kiln
DEVPYTHON = .kiln/venv-dev/bin/python
PYTEST = $(DEVPYTHON) -m pytest
# make image AITER=v0.1.14: another tag, commit or version than the pins', for this run (SAVE=1 make lock writes it into them).
CHOICES = aiter=$(AITER) vllm=$(VLLM) tilelang=$(TILELANG) triton=$(TRITON) torch=$(TORCH) base=$(BASE) archs=$(ARCHS)
SETS = $(foreach choice,$(filter-out %=,$(CHOICES)),--set '$(choice)')

.DEFAULT_GOAL := help
.PHONY: bench contract help image base serving gates verify lock fetch render plan audit advisories rehearse corpus publish pull engine-down tools dev chromium registry newcomer faults fuzz test test-fast lint clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo "  STACK=$(STACK)   the stack to work on (pins/STACK.toml); STACK=cpu needs no GPU"
	@echo "  AITER= VLLM= TILELANG= TRITON= TORCH= BASE= ARCHS=   choose other refs than the pins'"
	@echo "  ALLOW_ADVISORY=id   go past a known-bad combination; the image says so for ever"

image: tools ## fetch, build and verify the images of STACK
	@$(KILN) image $(STACK) $(SETS) $(if $(MODEL),--model $(MODEL))

base: tools ## the same for the base image alone
	@$(KILN) image $(STACK) $(SETS) --image $(IMAGES)-base

serving: tools ## the same for the serving image, and the base image that it stands on
	@$(KILN) image $(STACK) $(SETS) --image $(IMAGES)-serving $(if $(MODEL),--model $(MODEL))

gates: tools ## measure the images of STACK, with real weights: MODEL=DIR DATA=DIR (gsm8k's); hours on a GPU node
	@$(KILN) verify $(STACK) $(SETS) --level gates $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA))

verify: tools ## look at the built images of STACK again
	@$(KILN) verify $(STACK) $(SETS) $(if $(MODEL),--model $(MODEL))

lock: tools ## resolve the pins of STACK anew and write the lock
	@$(KILN) lock $(STACK) $(SETS) $(if $(SAVE),--save)

fetch: tools ## download the locked inputs of STACK
	@$(KILN) fetch $(STACK) $(SETS)

.PHONY: gc bundle unbundle
gc: tools ## remove what no lock, release or current build names, after showing it; ENGINE=1 the engine's too, YES=1 without asking
	@$(KILN) gc $(if $(ENGINE),--engine) $(if $(YES),--yes)

bundle: tools ## all inputs of STACK in one file, for a machine without a network; OUT=FILE
	@$(KILN) bundle $(STACK) $(if $(OUT),--out $(OUT))

unbundle: tools ## take the inputs in a bundle into the store: FILE=the bundle
	@$(KILN) unbundle $(FILE)

render: tools ## write the Dockerfiles of STACK into images/
	@$(KILN) render $(STACK)

plan: tools ## show the components of STACK and their build keys
	@$(KILN) plan $(STACK) $(SETS)

audit: tools ## list every input of STACK that could change
	@$(KILN) pins audit $(STACK) $(SETS)

.PHONY: bump
bump: tools ## take COMPONENT of STACK to its newest release, or to TO=REF, and commit it; DRY=1 only shows
	@$(KILN) pins bump $(COMPONENT) --stack $(STACK) $(if $(TO),--to $(TO)) $(if $(DRY),--dry-run)

advisories: tools ## say which known-bad combinations STACK is
	@$(KILN) advisories $(STACK) $(SETS)

rehearse: tools dev ## build the ROCm images from stand-ins for their upstreams: everything but the compilers and the GPU
	@$(DEVPYTHON) tests/rehearsal/standins.py .kiln/standins
	@$(KILN) rehearse $(STACK) --standins .kiln/standins $(SETS)

corpus: dev ## seeded defects in images, wheels, logs, servers and operators, each caught by its check; WORDS=part of a name, JSON=1
	@$(DEVPYTHON) -m tests.corpus $(if $(JSON),--json) $(WORDS)

contract: dev ## the mHC switch and `kiln pins derive` on the real sources of vLLM's releases: fetched by checksum, their dispatch run, every symbol taken out once
	@$(DEVPYTHON) -m tests.contract
	@KILN_CONTRACT=1 $(PYTEST) -q tests/contract

bench: dev ## how long Kiln takes beside what one would do by hand (minutes to an hour); FIGURES=names, RUNS=5
	@$(DEVPYTHON) -m tests.bench $(if $(RUNS),--runs $(RUNS)) $(FIGURES)

publish: tools ## push, sign and attest the images of STACK: TO=host/name KEY=cosign.key TAGS="latest nightly" REPORTS="file …"
	@$(KILN) publish $(STACK) $(SETS) $(if $(TO),--to $(TO)) $(if $(KEY),--key $(KEY)) $(TAGS:%=--tag %) $(REPORTS:%=--report %)

pull: tools ## pull the release of STACK that has the pins, once its signature and attestations were looked at; AITER= chooses
	@$(KILN) pull $(STACK) $(SETS) $(if $(VERIFY_KEY),--verify-key $(VERIFY_KEY))

engine-down: tools ## stop the private container engine, if kiln started one
	@$(KILN) engine down

.PHONY: docs
docs: ## the manual as a site: .kiln/site/index.html; every warning is an error
	@PYTHON=$(PYTHON) ci/make-venv .kiln/venv-docs requirements/docs.txt
	@NO_MKDOCS_2_WARNING=1 .kiln/venv-docs/bin/mkdocs --quiet build --strict

tools: ## make Kiln's tool environment (.kiln/venv) from hash-locked wheels
	@PYTHON=$(PYTHON) ci/make-venv .kiln/venv requirements/tools.txt

dev: ## the same with what tests and linters need (.kiln/venv-dev)
	@PYTHON=$(PYTHON) ci/make-venv .kiln/venv-dev requirements/dev.txt

test-fast: dev ## unit and golden tests: seconds, offline, no engine
	@$(PYTEST) -q -n 2 tests/unit tests/golden

chromium: ## what the tests of the report's page need: Debian's chromium
	@ci/need-chromium

registry: ## what the tests of the component cache need: Debian's docker-registry, as a program alone
	@ci/need-registry

newcomer: dev registry ## follow the README on a bare Debian 12 made for it, and pull on a second one what was built: from nothing, as root, below .kiln/newcomer
	@FULL=1 $(PYTEST) -q tests/e2e/test_newcomer.py

faults: dev registry ## break what is fetched, pushed and pulled on its way, and look that nothing wrong stays: a sample, or all of it with FULL=1
	@FULL=$(FULL) $(PYTEST) -q $(addprefix tests/integration/release/test_,faults.py kills.py full_disk.py)

fuzz: dev ## feed every reader with damaged documents, RUNS=100000 of them: none may end in a traceback
	@$(DEVPYTHON) -m tests.fuzz $(if $(RUNS),--runs $(RUNS))

# One release of each way in which vLLM takes AITER's mHC kernels: unfused, fused, and with 0.33's monokernel beside it.
SOURCES = 0.25.0 0.29.0 0.33.0
test: dev lint chromium registry ## all tests: with a real engine and browser, the rehearsal, and `make image STACK=cpu` end to end; FULL=1: no samples
	@$(DEVPYTHON) -m tests.contract --fetch $(SOURCES)
# WORKERS=2: tests/conftest.py says who takes what; the engine is there before both ask for it.
	@$(DEVPYTHON) -m kiln --quiet engine up >/dev/null
	@FULL=$(FULL) KILN_CONTRACT="$(SOURCES)" $(PYTEST) $(if $(WORKERS),-n $(WORKERS) --dist loadscope --no-loadscope-reorder) --durations=30 tests

lint: dev ## ruff, mypy, hadolint; and whether what is rendered or generated is current
	@.kiln/venv-dev/bin/ruff check .
	@.kiln/venv-dev/bin/mypy
	@.kiln/venv-dev/bin/hadolint --config ci/hadolint.yaml images/*/Dockerfile
	@.kiln/venv-dev/bin/kiln --quiet render cpu --check
	@.kiln/venv-dev/bin/kiln --quiet render dsv4-mhc --check
	@.kiln/venv-dev/bin/kiln --quiet pins audit dsv4-mhc
	@.kiln/venv-dev/bin/kiln --quiet render dsv4-mhc-upstream --check
	@.kiln/venv-dev/bin/kiln --quiet pins audit dsv4-mhc-upstream
	@.kiln/venv-dev/bin/kiln --quiet ci render --check

clean: ## stop the private engine and remove everything kiln made (.kiln)
	@if [ -x $(KILN) ]; then $(KILN) engine down; fi
	@rm -rf .kiln

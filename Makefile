# `make run` and `make test` are all one needs; `make` alone lists the rest.

LISTEN ?= 127.0.0.1:8080
PYTEST_ARGS ?=
WORKERS ?= 3
SECONDS ?= 600
BIN := .venv/bin
STATE := $(CURDIR)/.nixery-snap

.DEFAULT_GOAL := help
.NOTPARALLEL: # the order of the checks is the order of their output
.PHONY: help setup run test dev tools lint types imports docs unit fuzz format reference lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

setup: ## .venv with the locked dependencies, Nix and busybox
	@scripts/venv runtime
	@scripts/protos
	@scripts/nix

run: setup ## the registry with the bundled packages (LISTEN=HOST:PORT)
	@exec $(BIN)/nixery-snap serve --config examples/settings.toml --listen $(LISTEN) \
		--storage file://$(STATE)/store --store $(STATE)/nix --cache-directory $(STATE)/cache

# pytest comes last: its closing line ends the output. Tests wait a lot, so that there may be more WORKERS than
# cores. A file's tests run in one of them, and the files in their order: those of unit/ fill the gaps at the end.
test: tools lint types imports docs ## every check and every test (PYTEST_ARGS=…)
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

dev: ## what the checks need besides
	@scripts/venv dev
	@scripts/protos
	@scripts/nix

tools: ## the programs that the tests run; Python packages are installed meanwhile
	@scripts/venv dev & venv=$$!; \
		for step in nix test-tools test-containerd test-nix; do scripts/$$step || exit 1; done; wait $$venv
	@scripts/protos
	@scripts/test-azurite

lint: dev ## style of Python and shell code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@! command -v shellcheck >/dev/null || shellcheck .ci/run $(filter-out %.py %/__pycache__,$(wildcard scripts/*))

types: dev ## mypy
	$(BIN)/mypy

imports: dev ## which module may import which
	$(BIN)/lint-imports

# Its notice, that mkdocs 2 will be another program, is known: docs/decisions/0014-manual.md.
docs: dev ## the manual, as web pages in .site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

unit: dev ## the tests that start no server
	$(BIN)/pytest tests/unit $(PYTEST_ARGS)

fuzz: dev ## parsers of what comes over the network, for SECONDS=… in all
	FUZZ_SECONDS=$(SECONDS) $(BIN)/pytest tests/fuzz $(PYTEST_ARGS)

format: dev ## let ruff format and mend the Python code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

reference: dev ## write those pages of the manual that follow from the code
	$(BIN)/python -m scripts.reference
	$(BIN)/python -m tests.unit.test_nixos_modules

lock: dev ## make the lock files again (UPGRADE=--upgrade for new versions)
	scripts/lock $(UPGRADE)

clean: ## remove all that was made here, the registry's state too
	@[ ! -e .nixery-snap ] || chmod -R u+w .nixery-snap # what lies in a Nix store is read-only
	rm -rf .venv .nixery-snap .site .test-tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist \
		nixery_snap/image_service/generated tests/support/generated
	find . -name __pycache__ -prune -exec rm -rf {} +

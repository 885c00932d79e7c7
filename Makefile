# Two commands do everything on a fresh machine: `make run` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python

RECIPE ?= synthetic
SEEDS ?= 1
PORT ?= 8000
WORKERS ?= 1
REPOSITORY ?= models/repository
DURATION ?= 120
RATE ?= 50
EXPERIMENTS ?= models/experiments.yaml
# The folder of real click logs, if you have it: its tests run then, and skip with a reason otherwise.
export RETORT_TRAINING_DATA ?=

INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help run train serve test soak conformance lint format bench clean lock audit demo-live bench-peers

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Retort needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}: say make PYTHON=python3.11")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute or two, once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: train serve  ## train on the synthetic log, export, then serve the experiment on port 8000

train: $(INSTALLED)  ## log -> teachers -> gate -> student -> bundles and a report (RECIPE=..., SEEDS=3)
	$(PY) -m training run $(RECIPE) --seeds $(SEEDS) --repository $(REPOSITORY)

serve: $(INSTALLED)  ## serve what `make train` exported (PORT=8000, WORKERS=1); prints a curl and its answer
	$(PY) -m service --repository $(REPOSITORY) --experiments $(EXPERIMENTS) --port $(PORT) --workers $(WORKERS) --show-example

demo-live: $(INSTALLED)  ## a service, simulated users and the results, together (DURATION=120, RATE=50, HARM=student)
	$(PY) -m training demo --repository $(REPOSITORY) --port $(PORT) --workers $(WORKERS) --duration $(DURATION) --rate $(RATE) $(if $(HARM),--harm $(HARM)) $(if $(STAY),--stay)

# Servers are killed, overloaded and hurried in the second part: those tests have the machine to themselves.
test: $(INSTALLED)  ## the whole suite, under 15 minutes on 2 cores
	$(PY) -m pytest -m 'not soak and not alone' --numprocesses auto --maxprocesses 8 --dist loadfile
	$(PY) -m pytest -m 'alone and not soak' tests/service tests/docker

soak: $(INSTALLED)  ## the long forms: full recipes, hundreds of kills, soaks
	$(PY) -m pytest -m soak

conformance: $(INSTALLED)  ## clients of Triton, KServe and MLServer, and a model of FuxiCTR, from PyPI (needs a package index)
	$(PY) -m tests.conformance
	$(PY) -m tests.conformance.packing

AUDITED := $(VENV)-audit

$(AUDITED): # pip-tools and pip-audit, apart from everything
	@$(PYTHON) -m venv $@
	@$@/bin/pip install --quiet --disable-pip-version-check 'pip-tools==7.6.2' 'pip-audit>=2.9'

lock: | $(AUDITED)  ## docker/service.lock anew: what the image installs, with hashes (with the image's Python, 3.11)
	CUSTOM_COMPILE_COMMAND='make lock' $(AUDITED)/bin/pip-compile --quiet --extra service --generate-hashes --strip-extras \
	  --no-emit-index-url --no-emit-find-links --constraint constraints.txt --output-file docker/service.lock pyproject.toml

audit: | $(AUDITED)  ## is anything that the image installs known to be vulnerable? (asks pypi.org)
	$(AUDITED)/bin/pip-audit --strict --require-hashes --disable-pip --requirement docker/service.lock

lint: $(INSTALLED)  ## ruff and mypy (strict on models/ and service/)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy models service training

format: $(INSTALLED)  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## requests/s and latency beside session.run alone and the naive service, as ratios
	$(PY) -m benchmarks.predict

bench-peers: $(INSTALLED)  ## beside LitServe, BentoML, MLServer, KServe, Triton, Ray Serve, each installed from PyPI (4 GB)
	$(PY) -m benchmarks.peers.serving

clean:  ## forget cached runs (logs and exported bundles stay)
	rm -rf runs

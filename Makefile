PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUN_TESTS := $(BIN)/python -m pytest
# The tools are installed uncompiled: the first process that imports a file has to keep what it compiles.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo compare-demo test test-slow check lint types docs fmt clean

demo: models/digits-heads/denoiser.safetensors  ## Train on digits, distil class heads, certify held-out digits
	$(BIN)/ndc certify fast

compare-demo: models/digits-heads/denoiser.safetensors models/digits-classifier/classifier.json \
	models/digits-classifier-noise/classifier.json  ## Every method of the paper's tables on 24 digits, on one page
	$(BIN)/ndc sweep methods

test: .venv/dev  ## The tests (minutes)
	$(RUN_TESTS) -n 3 --dist loadfile --no-loadscope-reorder

test-slow: .venv/dev  ## The long ones: calibration, kills, rows per pass, full-size networks, jobs, a real S3 server
	$(RUN_TESTS) -m slow

check: lint types test  ## Everything a commit must pass; the tests hold the direction of imports

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

docs: .venv/dev  ## The reference and the notebook's outputs, from the code (pictures: docs/pictures.py)
	$(BIN)/python -m docs.reference
	$(BIN)/python -m docs.notebook

fmt: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

models/digits/denoiser.safetensors: | .venv/installed
	$(BIN)/ndc train --dataset digits --out models/digits

models/digits-heads/denoiser.safetensors: models/digits/denoiser.safetensors
	$(BIN)/ndc distill models/digits digits models/digits-heads

models/digits-classifier/classifier.json: | .venv/installed
	$(BIN)/ndc train --dataset digits --classifier --out models/digits-classifier

models/digits-classifier-noise/classifier.json: | .venv/installed
	$(BIN)/ndc train --dataset digits --classifier --noise 0.0625 --noise 0.125 --noise 0.25 \
		--out models/digits-classifier-noise

PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python  ## The package alone
	$(PIP) --editable .
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python  ## With what tests and checks need; compiled at first use
	$(PIP) --no-compile --editable '.[dev]'
	touch .venv/installed $@

clean:  ## Removes what the two commands made, models and runs included
	rm -rf .venv models runs mlflow.db mlartifacts

# make run [PROFILE=quick|default|full]   builds .venv and runs the main job
# make test   passes the quick tests     make test-all   the slow ones too     make lint   ruff, mypy, import-linter
# make serve  serves the champion on 127.0.0.1   make clean  removes what make made
# make update  pulls what is new and brings the environment up to date; what a run changed stays as it is
# make mutants [EACH=40 SEED=1 ROOMS=]  breaks random places of four rooms and counts what their quick tests see
# make figures  keeps the last run's figures for the docs   make screenshots  takes the docs' pictures with Chromium
PROFILE ?= default
PYTHON ?= $(firstword $(shell command -v python3.11 python3 2>/dev/null))
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_TRACKING_URI ?= sqlite:///mlflow.db
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile

.PHONY: run test test-all serve lint mutants update figures screenshots clean

ifndef MLFLOW_EXPERIMENT_ID
run: export MLFLOW_EXPERIMENT_NAME ?= salvage
endif
run: $(STAMP)
	mlflow run . --env-manager local -P profile=$(PROFILE)
	@echo "To have salvage, mlflow and dvc on your path: . $(VENV)/bin/activate"

# A file's tests stay in one process, for what they share.
PYTEST := python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m "slow and not alone"
	python -m pytest -m alone

# A line of log a request costs as much as the answer.
serve: export UVICORN_ACCESS_LOG := false
serve: export MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR := false
serve: $(STAMP)
	mlflow models serve --model-uri models:/salvage-router@champion --host 127.0.0.1 --port 5001 --env-manager local

lint: $(STAMP)
	ruff check .
	mypy
	lint-imports

update:
	git pull --autostash
	$(MAKE) $(STAMP)

figures:
	cp metrics/*.json docs/figures/

screenshots: $(STAMP)
	python tools/screenshots.py

# A venv of its own, which sees the project's packages: cosmic-ray is no part of the project.
EACH ?= 40
SEED ?= 1
mutants: .venv-mutants/.installed
	.venv-mutants/bin/python tools/mutants.py $(EACH) $(SEED) $(ROOMS)

.venv-mutants/.installed: $(STAMP)
	$(PYTHON) -m venv --clear .venv-mutants
	ls -d $(CURDIR)/$(VENV)/lib/python3.11/site-packages >.venv-mutants/lib/python3.11/site-packages/project.pth
	.venv-mutants/bin/python -m pip --disable-pip-version-check install --quiet 'cosmic-ray>=8.4,<9'
	touch $@

# Pinned, nothing to resolve. uv unpacks in a fifth of pip's time; where it cannot (settings of pip's that it does not
# read: an index of one's own), pip does. torch is pip's, beside it: from wherever pip is told to look for one's build,
# with what a GPU build needs in the third step.
# What a run imports is compiled at the end on every core, not by pip on one: where nothing may be compiled later, each
# start would do it again.
UNUSED := /(tests?|testing|vllm|databricks|pip|mypy|fontTools|lexers)/|/openai/(resources|types)/
UNUSED := $(UNUSED)|/transformers/models/(?!auto|llama|qwen3/)
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no python3.11 or python3 on PATH; install Python 3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "make: $(PYTHON) is not Python 3.11; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) $$(grep '^uv==' requirements.lock)
	grep -v '^torch==' requirements.lock >$(VENV)/others.txt
	$(PIP) --no-deps $$(grep '^torch==' requirements.lock) & torch=$$!; \
		$(VENV)/bin/uv pip install --quiet --no-deps --python $(VENV)/bin/python --requirement $(VENV)/others.txt || \
		$(PIP) --no-deps --requirement $(VENV)/others.txt; mine=$$?; wait $$torch && exit $$mine
	$(PIP) torch --constraint requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@$(VENV)/bin/python -m compileall -q -j 0 -x '$(UNUSED)' $(VENV)/lib >/dev/null 2>&1 || true # some ship templates
	touch $@

clean:
	rm -rf $(VENV) .venv-mutants .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

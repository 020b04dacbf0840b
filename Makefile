# Few verbs. `demo` and `test` set up everything they need in .venv; nothing else has to be installed by hand.
VENV   := .venv
PYTHON := $(VENV)/bin/python
RLIR   := $(VENV)/bin/rlir
STAMP  := $(VENV)/.installed

.PHONY: help demo demo-nfd test test-slow results readers settings denoising bench lint format
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet uv
	start=$$(date +%s); \
	$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --editable '.[doom,test]'; \
	echo $$(( $$(date +%s) - start )) > $(STAMP)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(STAMP)  ## RLIR from the shipped base model: table, plot, videos in runs/demo
	$(RLIR) train experiment=demo install_seconds=$$(cat $(STAMP))

demo-nfd: $(STAMP)  ## the same for the diffusion model, in runs/demo-nfd
	$(RLIR) train experiment=demo_nfd install_seconds=$$(cat $(STAMP))

test: $(STAMP)  ## everything but the slow tests
	$(VENV)/bin/ruff check .
	$(PYTHON) -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: $(STAMP)  ## full sizes and every dry run
	$(PYTHON) -m pytest -m slow

results: $(STAMP)  ## three seeds and the controls; hours, resumable
	$(RLIR) compare

readers: $(STAMP)  ## which slots coach and judge see, and how well, on test maps
	$(RLIR) study readers

settings: $(STAMP)  ## which reward, credit and rate learn best, by the coach on dev prompts; hours, resumable
	$(RLIR) study settings

denoising: $(STAMP)  ## which SDE, how much noise, how many denoising steps, by the judge; hours, resumable
	$(RLIR) study denoising

bench: $(STAMP)  ## tokens/s, memory, and an iteration beside its limit; minutes, on cores that are idle
	$(PYTHON) -m benchmarks

lint: $(STAMP)  ## layout, linter, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)  ## as ruff lays it out
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

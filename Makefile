# The only entry. Every target leaves .venv at the root, with eventlane importable.

ARGS ?=
PYTHON ?= python3
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench prove soak lock clean demo-environment dev-environment
CHECKS := check-format check-lint check-mypy check-pyright check-tidy
.PHONY: $(CHECKS)

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

demo: demo-environment ## run the order flow on real orders, with its dashboard; ARGS="--headless --orders 20000"
	@exec .venv/bin/python -m examples.orders $(ARGS)

test: dev-environment ## run the whole suite; ARGS="tests/unit -k retry"
	@requirements/browser.sh
	@exec .venv/bin/python -m pytest $(ARGS)

check: dev-environment ## format, lint, types, tidy rules: all of them, also after one fails
	@$(MAKE) --no-print-directory --keep-going $(CHECKS)

fix: dev-environment ## mend what ruff can mend
	@.venv/bin/ruff check --fix --quiet . || true
	@.venv/bin/ruff format .

bench: dev-environment ## run the benchmarks; ARGS="--only NAME --json FILE", or "--peers"
	@exec .venv/bin/python -m benchmarks $(ARGS)

prove: dev-environment ## the long loops; writes docs/reference/proof.md; ARGS="--only kill disk"
	@exec .venv/bin/python -m tests.prove $(ARGS)

soak: dev-environment ## load, kill -9 and replay for minutes; memory and file have to stay flat; ARGS="--minutes 10 --seed N"
	@exec .venv/bin/python -m tests.soak $(ARGS)

lock: dev-environment ## resolve requirements/*.in anew; ARGS="--upgrade" for newer versions
	@set -e; cd requirements; \
	compile() { out=$$1; shift; ../.venv/bin/uv --quiet --no-config pip compile --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" $(ARGS) $(UNUSED) -o $$out "$$@"; }; \
	compile uv.txt uv.in; \
	compile dev.txt ../pyproject.toml --extra console demo.in dev.in; \
	compile demo.txt ../pyproject.toml --extra console demo.in --constraint dev.txt

# The package with the orders asks for pandas; its files are read without it.
UNUSED := $(addprefix --no-emit-package ,pandas numpy python-dateutil tzdata)

clean: ## take away the environment and what the tools left
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

demo-environment:
	@requirements/environment.sh demo

dev-environment:
	@requirements/environment.sh dev

check-format:
	.venv/bin/ruff format --check --quiet --diff .

check-lint:
	.venv/bin/ruff check --quiet .

check-mypy:
	.venv/bin/python -m mypy $(wildcard src examples benchmarks)

check-pyright:
	.venv/bin/python -m basedpyright

check-tidy:
	.venv/bin/python -m pytest --quiet tests/test_tidy.py

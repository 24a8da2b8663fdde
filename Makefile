# `make demo` shows what tunesmith does, `make test` proves it; both install into .venv first. What takes minutes is in
# `make test-slow`: twenty kills, forecasts of memory, two processes, a Ray cluster, TRL beside us, every method on real
# rows. CI runs both.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow install check docs clean

demo: install
	$(BIN)/tunesmith run recipes/support/tunesmith.yaml

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest --numprocesses auto --dist loadscope -m "not slow"

test-slow: install
	$(BIN)/pytest --numprocesses auto --dist loadscope -m slow

docs: install
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv output recipes/*/output recipes/*/output-*

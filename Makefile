PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev

.PHONY: install demo test lint

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rd_jax needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

demo: install
	$(VENV)/bin/python -m rd_jax.main --config configs/demo.py --workdir runs/demo

test: install
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev

.PHONY: install demo novelty test lint docs

comma := ,
# One file for each choice of extras, so that choosing others installs them; one for any of them.
CHOSEN := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
ANY := $(VENV)/.installed

install: $(CHOSEN)

$(CHOSEN): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rd_jax needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev,$(EXTRAS)]"
	touch $(CHOSEN) $(ANY)

$(ANY): pyproject.toml
	$(MAKE) install

demo: $(ANY)
	$(VENV)/bin/python -m rd_jax.main --config configs/demo.py --workdir runs/demo

novelty: $(ANY)
	$(VENV)/bin/python -m rd_jax.main --config configs/one_class.py:digits --config.backbone=resnet10 --config.teacher_weights=embedded --workdir runs/novelty

test: $(ANY)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

docs: $(ANY)
	$(VENV)/bin/python -c 'from rd_jax.config import markdown; print(markdown(), end="")' > docs/config.md

lint: $(ANY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

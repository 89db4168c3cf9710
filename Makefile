PYTHON ?= python3
VENV ?= .venv
EXTRAS ?=

.PHONY: install demo novelty test lint docs docs-site package

comma := ,
# One file for each choice of extras, so that choosing others installs them; and one for what was
# installed by any choice: the package itself, and each extra.
CHOSEN := $(VENV)/.chosen-$(subst $(comma),-,$(EXTRAS))
INSTALLED := $(VENV)/.installed
DEV := $(INSTALLED)-dev
SITE := $(INSTALLED)-docs
PACKAGE := $(INSTALLED)-package

install: $(CHOSEN)

$(CHOSEN): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rd_jax needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".$(if $(EXTRAS),[$(EXTRAS)])"
	touch $(CHOSEN) $(INSTALLED) $(patsubst %,$(INSTALLED)-%,$(subst $(comma), ,$(EXTRAS)))

$(INSTALLED): pyproject.toml
	$(MAKE) install

$(DEV) $(SITE) $(PACKAGE): $(INSTALLED)-%: pyproject.toml
	$(MAKE) install EXTRAS=$*

demo: $(INSTALLED)
	$(VENV)/bin/python -m rd_jax.main --config configs/demo.py --workdir runs/demo

novelty: $(INSTALLED)
	$(VENV)/bin/python -m rd_jax.main --config configs/one_class.py:digits --config.backbone=resnet10 --config.teacher_weights=embedded --workdir runs/novelty

test: $(DEV)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

docs: $(INSTALLED)
	$(VENV)/bin/python -c 'from rd_jax.config import markdown; print(markdown(), end="")' > docs/config.md

docs-site: $(SITE)
	$(VENV)/bin/python docs/make_site.py
	$(VENV)/bin/zensical build --clean --strict

package: $(PACKAGE)
	$(VENV)/bin/validate-pyproject pyproject.toml
	rm -rf dist
	$(VENV)/bin/python -m build
	$(VENV)/bin/twine check --strict dist/*
	$(VENV)/bin/check-wheel-contents dist/*.whl

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell

# Two commands do all the set-up: `make demo` and `make test`. Both may be run again at any time.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check install --no-compile --progress-bar off --constraint constraints.txt
SETUP := pyproject.toml constraints.txt
PYTEST_ARGS ?=
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help:
	@echo 'make demo     set up .venv, generate a grid of images from the shipped model into out/'
	@echo 'make test     set up .venv, run the whole test suite in JOBS=2 processes (PYTEST_ARGS=... adds options of pytest)'
	@echo 'make lint     check style and imports'
	@echo 'make format   rewrite the files in the project'"'"'s style'
	@echo 'make clean    remove .venv, out/ and what builds and tests leave behind'

demo: $(VENV)/.installed
	@$(RUN) genflow generate --out out

test: $(VENV)/.installed-test
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(RUN) pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .

format: $(VENV)/.installed-test
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,WHAT): a dot a package on the way; pip's own words only when it fails. Bytecode is made on all cores,
# which pip does on one; packages hold a few files that no Python of ours compiles.
define install
	@rm -f $(VENV)/.failed
	@{ $(PIP) $(1) 2>$(VENV)/pip.log || touch $(VENV)/.failed; } | awk \
	  '/^Collecting/ { printf "."; fflush() } /^Installing/ { printf " unpacking"; fflush() } END { print "" }'
	@if [ -e $(VENV)/.failed ]; then rm -f $(VENV)/.failed; cat $(VENV)/pip.log >&2; exit 1; fi
	@echo "compiling it to bytecode"
	@$(RUN) compileall -qq -j 0 $(VENV)/lib || true
endef

# The stamps: set-up is done again only when what it depends on has changed.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "genflow needs Python 3.11 or newer; $(PYTHON) is another. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "could not make $(VENV); on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(SETUP) | $(VENV)/bin/python
	@echo "installing genflow and its dependencies into $(VENV) (a minute or two the first time)"
	$(call install,--editable .)
	@touch $@

$(VENV)/.installed-test: $(SETUP) | $(VENV)/bin/python
	@echo "installing genflow with its test dependencies into $(VENV) (a minute or two the first time)"
	$(call install,--editable '.[test]')
	@touch $(VENV)/.installed $@

# `make dock` and `make test` need only Python 3.11+, pip and make: each makes .venv when it is missing.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt
JOBS   ?= 2

# One thread a process: the tests and the small networks here gain nothing from more.
export OMP_NUM_THREADS ?= 1

.PHONY: dock test lint
dock: $(VENV)/run.stamp
	$(PY) -m bio_diffusion.dock --protein data/demo/protein.pdb --ligand data/demo/ligand.sdf \
	    --autobox_ligand data/demo/ligand.sdf --out docking-results --overwrite

test: $(VENV)/dev.stamp
	$(PY) -m pytest -n $(JOBS)

lint: $(VENV)/dev.stamp
	$(PY) -m ruff check .
	$(PY) -m mypy bio_diffusion

# The stamps make a second call instant; a half-made environment is made anew.
define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
    { echo "Python 3.11 or newer is needed; say which with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
endef

$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(make_venv)
	$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(make_venv)
	$(PIP) -e '.[dev]'
	@touch $(VENV)/run.stamp $@

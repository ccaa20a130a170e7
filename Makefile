# Two commands for a newcomer: `make demo` and `make test`.  Both make the environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/stickers
BIN := $(VENV)/bin
# Versions that the tests passed with; `make test CONSTRAINTS=` takes the newest that setup.py allows.
CONSTRAINTS ?= constraints.txt
# Large pages for a step's temporaries on CPUs, see docs/performance.md; read by glibc, ignored by other C libraries.
GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# Containers often set this to 1; then each process would compile all imported modules again, which takes seconds.
export PYTHONDONTWRITEBYTECODE :=
INSTALL = $(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

# By file: with pytest 9.2, --dist=loadgroup sends the tests of a group to any process (pytest-xdist issue 1386).
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

.PHONY: env demo test slow lint most-tests check docs numbers constraints clean

env: $(VENV)/demo.stamp  ## the environment alone, with what the demo needs

demo: export GLIBC_TUNABLES := $(GLIBC_TUNABLES)
demo: $(VENV)/demo.stamp  ## pretrain on the embedded images: about ten minutes on two cores
	$(BIN)/python -m detailclip_jax.main --config=configs/stickers.py --workdir=$(WORKDIR)

test: $(VENV)/dev.stamp  ## the quick tests, to run after each change
	$(PYTEST) -m "not check and not slow"

slow: $(VENV)/dev.stamp  ## the slow tests, with what they print: ViT-B/16 at 224 px, tests/survive.py, tests/hostile.py
	$(BIN)/python -m pytest -m slow -rP

lint: $(VENV)/dev.stamp  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

most-tests: $(VENV)/dev.stamp
	$(PYTEST) -m "not slow" --durations=30 -rs

check: lint most-tests  ## what CI runs: lint, types and all tests but the slow ones; says why tests were skipped

docs: $(VENV)/dev.stamp  ## the documentation site, in build/site; links and headings are checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "written to build/site; open build/site/index.html in a browser"

numbers: $(VENV)/dev.stamp  ## lists the measured numbers of README and docs; ONLY="NAME ..." measures these again
	$(BIN)/python tools/page_numbers.py $(ONLY)

constraints:  ## write the lines of constraints.txt for the Python of .venv
	version=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	{ grep -v "python_version == '$$version'" constraints.txt; \
	  $(BIN)/python -m pip list --format=freeze | grep -viE '^(pip|setuptools|wheel|detailclip_jax)==' \
	  | sed -E "s/\\+[a-z0-9.]+$$//; s/$$/ ; python_version == '$$version'/"; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/python.stamp:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "there is no $(PYTHON) here; name a Python that is: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "detailclip_jax needs Python 3.11 or newer, $(PYTHON) is older; try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp setup.py $(CONSTRAINTS)
	@echo "installing packages into $(VENV): minutes"
	$(INSTALL) --editable '.[demo]'
	@touch $@

# Without compiling all of it, which takes a minute: Python compiles what the tests import, a small part.
$(VENV)/dev.stamp: $(VENV)/python.stamp setup.py $(CONSTRAINTS)
	@echo "installing packages into $(VENV): minutes"
	$(INSTALL) --no-compile --editable '.[dev,torch,data,demo]'
	@touch $@ $(VENV)/demo.stamp

# Two commands for a bare machine with Python 3.11+, make and git:
#   make demo   sets up, then runs the whole way on real text
#   make test   sets up, then runs every test
# and: make demo-retrieval, images found by text; make test-browser, reports in a real browser
PYTHON ?= python3
DEMO_ENV := .venv/demo
TEST_ENV := .venv/test
DEMO_DIR ?= .demo
PIP := -m pip --disable-pip-version-check install --quiet -c constraints.txt

GET_CHROMIUM = apt-get update -q && \
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
	chromium fonts-dejavu-core

export HF_HUB_OFFLINE = 1
export PIP_PROGRESS_BAR = off

.PHONY: help demo demo-retrieval test browser test-browser check format bench clean

help:
	@echo "make demo    cache MiniLM, train a side network on tweets, export one model"
	@echo "make demo-retrieval  cache two towers on captioned images, train, export, search"
	@echo "make test    run the tests"
	@echo "make test-browser  open the reports of sweeps in Chromium (apt-get installs it as root)"
	@echo "make check   lint and type-check"
	@echo "make format  rewrite the code in the house format"
	@echo "make bench   run the benchmarks (about ten minutes)"
	@echo "make clean   remove the environments and the demo's results"

$(DEMO_ENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO_ENV)
	$(DEMO_ENV)/bin/python $(PIP) torch
	$(DEMO_ENV)/bin/python $(PIP) --editable '.[extract,plot]'
	@touch $@

$(TEST_ENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TEST_ENV)
	$(TEST_ENV)/bin/python $(PIP) torch
	$(TEST_ENV)/bin/python $(PIP) --editable '.[dev]'
	@touch $@

$(TEST_ENV)/browser: $(TEST_ENV)/ready
	$(TEST_ENV)/bin/python $(PIP) playwright
	@touch $@

demo: $(DEMO_ENV)/ready
	$(DEMO_ENV)/bin/python cli.py demo --out $(DEMO_DIR)

demo-retrieval: $(DEMO_ENV)/ready
	command -v npm > /dev/null || $(DEMO_ENV)/bin/python $(PIP) --editable '.[extract,plot,npm]'
	$(DEMO_ENV)/bin/python cli.py demo-retrieval --out $(DEMO_DIR)

test: $(TEST_ENV)/ready
	OMP_NUM_THREADS=1 $(TEST_ENV)/bin/python -m pytest -n auto -q

browser: $(TEST_ENV)/browser
	test -n "$$CHROMIUM" || command -v chromium > /dev/null || { $(GET_CHROMIUM); }

test-browser: browser
	OMP_NUM_THREADS=1 $(TEST_ENV)/bin/python -m pytest -q tests/browser/report_in_browser.py

check: $(TEST_ENV)/ready
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/ruff format --check .
	$(TEST_ENV)/bin/mypy

format: $(TEST_ENV)/ready
	$(TEST_ENV)/bin/ruff check --fix .
	$(TEST_ENV)/bin/ruff format .

bench: $(TEST_ENV)/ready
	$(TEST_ENV)/bin/python -m benchmarks.run

clean:
	rm -rf .venv $(DEMO_DIR)

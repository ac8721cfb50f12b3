# Everything runs from .venv, which the first target that needs it creates: no activation, nothing outside this folder.
#
# Two sets of packages share that environment, each with a stamp in .venv/.stamps:
#   base  what qualitygate needs to run           (make demo, make install)
#   full  base + extras dev and reference         (make test, lint, format)
# A stamp is removed before pip starts and written after it succeeds, so an interrupted install is done again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
WHEELS := .wheels
STUB := scripts/opencv_python_stub
STUB_FILES := $(STUB)/pyproject.toml $(STUB)/README.md
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format tree constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMPS)/base  ## create .venv with what qualitygate needs to run

demo: $(STAMPS)/base  ## run the whole path on small made-up photographs; the result is in demo/
	$(BIN)/qualitygate demo --output demo

test: lint  ## format, lint, types, layers, tests: what continuous integration runs
	$(BIN)/pytest

lint: $(STAMPS)/full  ## format, lint, types and layers, without the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMPS)/full  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tree: $(BIN)/python  ## write the list of files in README.md again
	$(BIN)/python scripts/readme_tree.py

# Resolves anew within pyproject.toml's ranges and installs nothing: pins are those of this machine's Python.
constraints: $(BIN)/python  ## write constraints.txt again with the newest releases that fit
	@$(ensure_venv)
	$(build_stub)
	$(PIP) install --quiet --dry-run --ignore-installed --report $(WHEELS)/report.json \
		--find-links $(WHEELS) -c $(WHEELS)/stub.txt -e '.[dev,reference,cluster]'
	$(BIN)/python -c "$$WRITE_CONSTRAINTS" $(WHEELS)/report.json > $(WHEELS)/constraints.txt
	mv $(WHEELS)/constraints.txt constraints.txt

clean:  ## remove what was made, but for .venv (rm -rf .venv removes that)
	rm -rf build dist demo *.egg-info $(WHEELS) $(STUB)/build $(STUB)/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- the environment -------------------------------------------------------------------------------------

$(BIN)/python:
	@$(ensure_venv)

$(STAMPS)/base: pyproject.toml constraints.txt $(BIN)/python
	@$(ensure_venv)
	rm -f $(STAMPS)/base $(STAMPS)/full
	@$(forget_half_installed)
	$(PIP) install -c constraints.txt -e .
	@mkdir -p $(STAMPS)
	@touch $(STAMPS)/base

# The extra reference asks for opencv-python, and the stub answers: see $(STUB)/README.md.
$(STAMPS)/full: pyproject.toml constraints.txt $(STUB_FILES) $(BIN)/python
	@$(ensure_venv)
	rm -f $(STAMPS)/base $(STAMPS)/full
	@$(forget_half_installed)
	$(build_stub)
	$(PIP) install --find-links $(WHEELS) -c constraints.txt -e '.[dev,reference]'
	@mkdir -p $(STAMPS)
	@touch $(STAMPS)/base $(STAMPS)/full

# Keeps an environment that works; makes it anew when it is missing, half made or of too old a Python.
define ensure_venv
if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "qualitygate needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -n 1): name one with 'make PYTHON=/path/to/python3.11 ...'" >&2; \
		exit 1; \
	fi; \
	echo "$(PYTHON) -m venv --clear $(VENV)"; \
	$(PYTHON) -m venv --clear $(VENV); \
fi
endef

# pip writes RECORD last: without it a package was interrupted, yet pip would take it for installed.
define forget_half_installed
for folder in $(VENV)/lib/python*/site-packages/*.dist-info; do \
	if [ -d "$$folder" ] && [ ! -e "$$folder/RECORD" ]; then echo "rm -r $$folder"; rm -r "$$folder"; fi; \
done
endef

# Built from a copy, so that setuptools leaves nothing in the source folder.
define build_stub
rm -rf $(WHEELS)
mkdir -p $(WHEELS)/stub
cp $(STUB_FILES) $(WHEELS)/stub/
$(PIP) wheel --quiet --no-deps -w $(WHEELS) $(WHEELS)/stub
sed -n 's/^version = "\(.*\)"/opencv-python==\1/p' $(STUB)/pyproject.toml > $(WHEELS)/stub.txt
endef

define WRITE_CONSTRAINTS
import json, sys
report = json.load(open(sys.argv[1], encoding="utf-8"))
found = report["environment"]
pins = {item["metadata"]["name"]: item["metadata"]["version"] for item in report["install"]}
pins.pop("qualitygate")
print("# Every package of the full environment (base + dev + reference), and of the extra cluster, pinned.")
print("# Resolved on Python {} ({} {}).".format(found["python_full_version"], found["sys_platform"], found["platform_machine"]))
print("# Written by 'make constraints'; used by 'make demo' and 'make test'. Change pyproject.toml, not this file.")
print("# opencv-python is the stub in scripts/opencv_python_stub, so that cv2 stays the headless one.")
for name, version in sorted(pins.items(), key=lambda pin: pin[0].lower()):
    print("{}=={}".format(name, version))
endef
export WRITE_CONSTRAINTS

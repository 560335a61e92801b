# make book     the book, in _build/html       make doctor   what this host can do
# make test     the book, then every test      make bench    ours beside the real systems
# make lab      JupyterLab on the labs         make soak     the long counts
# make checks   renew the check records        make dist     one zip, for those who only read
# make clean    away with all of it

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --no-compile
VMBOOK := PYTHONPATH=book/_ext $(BIN)/python -m vmbook
hash = $(firstword $(shell cksum $(1) pyproject.toml | cksum))
BOOK := $(VENV)/.book-$(call hash,requirements.txt)
DEV := $(VENV)/.dev-$(call hash,requirements.txt requirements-dev.txt)

# Packages are installed uncompiled, which is quicker; what a build imports is compiled once, by it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book test lab bench soak checks dist doctor clean guests labs picture
.DEFAULT_GOAL := book

book: $(BOOK)
	@$(VMBOOK).build

test: book $(DEV)
	@$(BIN)/python -m pytest $(ARGS)

checks: $(DEV)
	@$(BIN)/python -m pytest --write-checks $(ARGS)

soak: $(DEV)
	@$(BIN)/python -m pytest -m soak --soak $(ARGS)

bench: $(DEV)
	@$(BIN)/python -m benchmarks $(ARGS)

lab: $(DEV)
	@$(VMBOOK).lab $(ARGS)

dist: book
	@$(VMBOOK).dist

doctor: $(BOOK)
	@$(BIN)/python -m vmlib doctor

# For whoever changes a guest (needs nasm), the look (needs chromium) or a lab.
guests:
	@for source in vmlib/cpu/images/*.asm; do \
	  (cd $$(dirname $$source) && nasm -f bin $$(basename $$source) -o /dev/null -l $$(basename $$source .asm).lst); done

picture: book $(DEV)
	@$(VMBOOK).picture

labs: $(DEV)
	@$(VMBOOK).labs $(ARGS)

clean:
	rm -rf $(VENV) _build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BOOK): requirements.txt pyproject.toml
	@$(PYTHON) book/_ext/vmbook/environment.py $(VENV)
	@echo "Installing the book's packages …"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-build-isolation -e .
	@rm -f $(VENV)/.book-* && touch $@

$(DEV): requirements-dev.txt | $(BOOK)
	@echo "Installing what tests and labs need …"
	@$(PIP) -r requirements-dev.txt
	@rm -f $(VENV)/.dev-* && touch $@

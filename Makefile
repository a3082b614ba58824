# Each target sets up .venv on its first run; nothing outside this folder is touched.

# Empty: the bundled model.
MODEL ?=
HOST ?= 127.0.0.1
PORT ?= 8080
# What the training writes (runs/scenes, runs/motion), and how long it goes on.
OUT ?=
MINUTES ?= 60

BIN := .venv/bin
READY := .venv/.ready
KERNELS := .venv/.kernels
# For `make wheels` alone: zig has 400 MB.
ZIG := build/wheels/venv
WHEELS := manylinux_2_17_x86_64 manylinux_2_17_aarch64 macosx_11_0_arm64
# The first of these that is new enough; override with `make PYTHON=/path/to/python3`.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow lint kernels wheels train-scenes train-motion clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(READY) $(KERNELS)  ## serve MODEL (default: the bundled one) at http://HOST:PORT (default 127.0.0.1:8080)
	@mkdir -p runs
	@$(BIN)/galago serve $(if $(MODEL),--model "$(MODEL)") --host "$(HOST)" --port "$(PORT)" --jobs-db runs/jobs.db

test: lint $(KERNELS)  ## check style and types, then run the tests that are not slow
	$(BIN)/python -m pytest -rs -m "not slow" -n logical --maxprocesses 8 --dist loadfile

test-slow: $(READY) $(KERNELS)  ## run the slow tests, which rarely tell anything
	$(BIN)/python -m pytest -rs -m slow

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernels: $(READY)  ## compile the kernels anew, whatever has changed
	@rm -f $(KERNELS)
	@$(MAKE) --no-print-directory $(KERNELS)

wheels: $(ZIG)/.ready  ## make wheels with the kernels for Linux (x86-64, ARM) and macOS (ARM) in dist
	@for platform in $(WHEELS); do \
		echo "compiling for $$platform, which takes a minute or two the first time"; \
		GALAGO_WHEEL=$$platform ZIG_GLOBAL_CACHE_DIR=$(CURDIR)/build/wheels/zig $(ZIG)/bin/hatchling build -t wheel -d dist || exit 1; \
	done

train-scenes: $(READY) $(KERNELS)  ## train the next bundled model in OUT for MINUTES; goes on where it ended
	$(BIN)/python -m training.scenes.train --run "$(or $(OUT),runs/scenes)" --start src/galago/assets/scenes --minutes "$(MINUTES)"

train-motion: $(READY) $(KERNELS)  ## train the model of clips in OUT for MINUTES; goes on where it ended
	$(BIN)/python -m training.motion.train --run "$(or $(OUT),runs/motion)" --minutes "$(MINUTES)"

clean:  ## remove the environment, caches and builds (not OUT)
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f src/galago/kernels/_kernels.*
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

define new_environment
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than Python 3.11 or cannot run"; exit 1; }
	"$(PYTHON)" -m venv $(1)
endef

$(ZIG)/.ready: constraints.txt
	$(call new_environment,$(ZIG))
	$(ZIG)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling ziglang
	@touch $@

# The moondream client comes without the GPU engine that it would bring along; where it is missing its tests are skipped.
# Written last, so a set-up that was interrupted starts again.
$(READY): pyproject.toml constraints.txt
	$(call new_environment,.venv)
	GALAGO_NO_KERNELS=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps moondream
	@touch $@

# Apart from the environment, so that a change of theirs needs no network, and a warning is seen: pip would hide it.
# Without a compiler it ends with 1, which is no error.
$(KERNELS): $(READY) $(wildcard src/galago/kernels/*.cpp src/galago/kernels/*.h) src/galago/kernels/build.py
	@$(BIN)/python src/galago/kernels/build.py || test $$? -eq 1
	@touch $@

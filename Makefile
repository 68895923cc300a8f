# make demo    set everything up, make a v1 cache, migrate it offline, show before and after
# make test    set everything up and run all tests; as root it installs containerd, Go, bbolt and containerd's client in Go to compare with
# make torture put it through crashes, kills, faults and hostile input at full length; TORTURE_ARGS has options of python -m tests.torture
# make lint    ruff and mypy
# make protos  compile protos/ anew
# make bench   measure everything on this machine, in about six minutes; BENCH_ARGS has options of python -m benchmarks
# make bench-large  the same with 100,000 records for the baseline, too, a million for us, and 10,000 live
# make bench-live   measure live migrations alone, and thoroughly, in a containerd of its own (as root)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test torture lint format protos bench bench-large bench-live tools clean

demo: $(VENV)/.ready
	scripts/demo $(BIN)/asyncmig

# One process a processor; -n 0 in PYTEST_ARGS runs them one by one.
test: $(VENV)/.ready-dev tools
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

torture: $(VENV)/.ready-dev tools
	$(BIN)/python -m tests.torture $(TORTURE_ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(VENV)/.ready-dev
	$(BIN)/python scripts/compile_protos.py asyncmig/stores/containerd/_pb

bench: $(VENV)/.ready-dev tools
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-large: $(VENV)/.ready-dev tools
	$(BIN)/python -m benchmarks --large $(BENCH_ARGS)

bench-live: $(VENV)/.ready-dev
	ASYNCMIG_REQUIRE_TOOLS=1 scripts/install-tools
	$(BIN)/python -m benchmarks --suite live --records 1000 10000 --concurrency 1 8 16 32 --on disk tmpfs $(BENCH_ARGS)

tools:
	scripts/install-tools

$(VENV)/.ready: pyproject.toml scripts/setup
	scripts/setup $(PYTHON) $(VENV) ""
	touch $@

$(VENV)/.ready-dev: pyproject.toml scripts/setup
	scripts/setup $(PYTHON) $(VENV) "[trio,dev,bench,fuzz]"
	touch $@ $(VENV)/.ready

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

# make demo: set up and run the main job on this machine.   make test: set up and pass the tests.
PYTHON ?= python3
VENV ?= .venv
# The build of torch. On a CUDA machine: make setup TORCH="torch==2.11.0" (or 2.12.*, 2.13.*) with your index.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -q

.PHONY: train status logs monitor train-prime status-prime logs-prime monitor-prime
.PHONY: setup demo smoke test test-long proofs lint lab faults soak gpu evidence bench-cli bench-ssh bench-health bench-survival halts cuts floods clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else f"orch needs Python 3.11 or 3.12; {sys.executable} is {v[0]}.{v[1]}. Try: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt "$(TORCH)" numpy
	$(PIP) install -q -c constraints.txt -e ".[pod,gpu,dev]"
	@touch $@

demo: setup
	$(BIN)/orch launch tiny --follow

# A run on a machine from nothing: make train REMOTE_HOST=root@203.0.113.7:40022 JOB=tiny   (the whole ssh line works too)
# Shows the machine's key and asks when it is new. Without REMOTE_HOST or POD: on this machine.
JOB ?= tiny
POD ?=
export REMOTE_HOST
ORCH := $(BIN)/orch

train: setup
	@pod='$(POD)'; if [ -n "$$REMOTE_HOST" ]; then \
	  if [ -z "$$pod" ]; then pod=$$($(BIN)/python -m orchestrator.inventory.podname "$$REMOTE_HOST") || exit; fi; \
	  $(ORCH) pods add --if-missing "$$pod" "$$REMOTE_HOST" || exit; fi; \
	$(ORCH) launch $(JOB) $${pod:+--pod "$$pod"} --follow

# How runs are doing; with POD= those on one pod.
status: setup
	@$(ORCH) $(if $(POD),runs --from $(POD),status)

# make logs RUN=<run>; default: the newest, with POD= the newest on that pod.
RUN ?= $(if $(POD),$(shell $(ORCH) runs --from $(POD) --json | $(BIN)/python -c 'import json,sys; print(json.load(sys.stdin)["runs"][0]["run"])'),latest)
logs: setup
	@$(ORCH) logs $(RUN) -f

# The status, made anew every 5 s until Ctrl-C.
monitor: setup
	@while :; do clear 2>/dev/null; date; $(MAKE) --no-print-directory status || true; sleep 5; done

# The same for the pod that is called prime.
train-prime status-prime logs-prime monitor-prime: %-prime: setup
	@$(MAKE) --no-print-directory $* POD=prime

# Does training work here? A short run of a recipe through the smoke gates, in a home of its own, brought down after.
# 51 s on two idle cores behind `make setup` (2026-11-22, commit 18d33a9), 172 s on two that others wanted too.
# make smoke JOB=125m STEPS=300 for another one; its rows stay in build/smoke.
STEPS ?= 110
smoke: setup
	@export ORCH_HOME='$(CURDIR)/build/smoke'; mkdir -p build && mkdir -p -m 700 "$$ORCH_HOME"; \
	$(ORCH) smoke $(JOB) --steps $(STEPS); code=$$?; $(ORCH) down; exit $$code

test: setup system-packages lint
	@sh tests/suites.sh default $(PYTEST)

test-long: setup system-packages
	@sh tests/suites.sh long $(PYTEST)

# What make test-long has no time for: all random lives, twenty kills of a training, all but one of a kind. Hours.
proofs: setup system-packages
	$(PYTEST) -m "proof and not gpu" tests

# Three pods on this machine (root on Linux) to try orch on, and a shell that reaches them; gone when it exits.
lab: setup system-packages
	@$(BIN)/python -m tests.lab

# Every fault at every moment (root on Linux for all of it); the rows are appended to runbooks/results/faults.jsonl.
# One cell: python -m tests.faults --only rank-killed/halting
faults: setup system-packages
	$(BIN)/python -m tests.faults --save runbooks/results/faults.jsonl

# Random faults on a few runs for hours; the seed is printed, a row is appended to runbooks/results/soak.jsonl.
HOURS ?= 0.5
soak: setup system-packages
	$(BIN)/python -m tests.faults.soak --hours $(HOURS) $(if $(SEED),--seed $(SEED)) --save runbooks/results/soak.jsonl

# Tests that need an NVIDIA GPU.
gpu: setup
	$(PYTEST) -m gpu tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What the command costs; the rows are appended to runbooks/results/cli.jsonl. On an idle machine, at a clean commit.
bench-cli: setup
	rm -rf build/operator && $(PYTHON) -m venv build/operator
	build/operator/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt .
	$(BIN)/python -m tests.bench_cli --launch --operator-venv build/operator --save runbooks/results/cli.jsonl

# What pods over SSH cost, against real sshds on loopback; the rows are appended to runbooks/results/ssh.jsonl.
bench-ssh: setup system-packages
	$(BIN)/python -m tests.bench_ssh --save runbooks/results/ssh.jsonl

# A thousand halts and what lives after each; the rows are appended to runbooks/results/halts.jsonl. About 6 minutes.
N ?= 1000
halts: setup
	$(BIN)/python -m tests.halts --n $(N) --save runbooks/results/halts.jsonl

# A thousand resets and twenty silences while logs are copied; rows go to runbooks/results/cuts.jsonl. About 15 minutes.
CUTS ?= 1000
cuts: setup system-packages
	$(BIN)/python -m tests.cuts --resets $(CUTS) --save runbooks/results/cuts.jsonl

# What watching a run costs; the rows are appended to runbooks/results/health.jsonl. On an idle machine, at a clean commit.
bench-health: setup
	$(BIN)/python -m tests.bench_health --save runbooks/results/health.jsonl

# How soon a dead rank, a hang and a halt are dealt with; rows go to runbooks/results/survival.jsonl. About two minutes.
bench-survival: setup
	$(BIN)/python -m tests.bench_survival --save runbooks/results/survival.jsonl

# Memory of every part on a run with 10 GB of log and millions of lines; rows go to runbooks/results/floods.jsonl.
floods: setup
	$(BIN)/python -m tests.floods --save runbooks/results/floods.jsonl

# README's figures, rebuilt from runbooks/results/*.jsonl; fails on one without row, machine, date or commit.
evidence: setup
	$(BIN)/python -m runbooks.evidence

.PHONY: system-packages
system-packages:
	@sh tests/system-packages.sh

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# A menu, thin over real commands. `make help` lists it.
PYTHON ?= python3
VENV   ?= .venv
# CPU set by default; EXTRAS=test,tpu or EXTRAS=test,gpu on machines that have one.
EXTRAS ?= test
PY      = $(VENV)/bin/python
FOLDER := $(or $(MAECLIP_DATA_DIR),$(TFDS_DATA_DIR),data)
DATA   ?= $(FOLDER)
CONFIG ?= experiments/mae_clip.py:scale=demo,pool=max
WORKDIR ?= runs/mine
WORKDIRS ?= $(WORKDIR)
OUT    ?= runs/tables
TOPOLOGY ?= v5litepod-256
SELECT ?=
ROWS   ?=
ARGS   ?=
JOBS   ?= 2
STAMP   = $(VENV)/.installed-$(subst $(eval ) ,,$(subst $(comma),-,$(EXTRAS)))
comma  := ,
export MAECLIP_DATA_DIR := $(DATA)

.DEFAULT_GOAL := help
.PHONY: help install demo data train eval report tables compare sweep study study-report bench bench-probe bench-input preflight preflight-all doctor \
	test test-long test-unit test-parity test-lowest notebooks lint golden clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 to 3.13 is needed; set PYTHON=python3.12, say" >&2; exit 2; }
	@test -x $(PY) || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing maeclip_jax[$(EXTRAS)] into $(VENV)"
	@$(PY) -m pip install -q --upgrade pip && $(PY) -m pip install -q -e '.[$(EXTRAS)]'
	@touch $@

install: $(STAMP)  ## create .venv and install the package (EXTRAS=test,tpu | test,gpu | ...)

data: $(STAMP)  ## draw the embedded data set `scenes` into DATA=data
	$(PY) -m maeclip_jax.prepare.builders.scenes --config demo --data_dir '$(DATA)'

demo: data  ## train MAE-CLIP on scenes, evaluate, write runs/demo/report/index.html (about 10 minutes on 2 cores)
	$(PY) -m maeclip_jax.main --config=experiments/mae_clip.py:scale=demo,pool=max --workdir=runs/demo
	$(PY) -m maeclip_jax.report runs/demo

train: $(STAMP)  ## train CONFIG=experiments/x.py:arg in WORKDIR=runs/x (ARGS="--config.seed=1 ...")
	$(PY) -m maeclip_jax.main --config='$(CONFIG)' --workdir='$(WORKDIR)' $(ARGS)

eval: $(STAMP)  ## evaluate the newest checkpoint of WORKDIR; SUITE=experiments/eval/x.py:arg instead of its own evaluators
	$(PY) -m maeclip_jax.main --mode=eval --config='$(WORKDIR)/config.json' --workdir='$(WORKDIR)' \
		$(if $(SUITE),--config.evals='$(SUITE)') $(ARGS)

report: $(STAMP)  ## write WORKDIR/report/index.html
	$(PY) -m maeclip_jax.report '$(WORKDIR)'

tables: $(STAMP)  ## write the paper's tables from the evaluations of WORKDIRS="runs/a runs/b ..." to OUT=runs/tables
	$(PY) -m maeclip_jax.report --tables $(WORKDIRS) --out '$(OUT)'

compare: $(STAMP)  ## test every number that two runs share on the same items: WORKDIRS="runs/a runs/b"
	$(PY) -m maeclip_jax.report --compare $(WORKDIRS)

sweep: $(STAMP)  ## run SWEEP=pooling_demo (experiments/sweeps/), JOBS=1 side by side, resumable; one table (ARGS=--root=gs://bucket/runs)
	$(PY) -m maeclip_jax.sweep '$(SWEEP)' $(if $(filter command line environment,$(origin JOBS)),--jobs=$(JOBS)) $(ARGS)

# Axes of a study by the names of its flags; those that are not given have the command's defaults.
AXES = $(foreach axis,SIZES DIVERSITY ARMS POOL SEEDS MATCH WEIGHTS EXAMPLES SCALE BUDGET PRICE OUTCOME TUNE,$(if \
	$($(axis)),--$(shell echo $(axis) | tr A-Z a-z)='$($(axis))'))
STUDY = $(if $(filter command line,$(origin OUT)),$(OUT),results/study)

study: export MAECLIP_DATA_DIR := $(FOLDER)
study: $(STAMP)  ## size x diversity x objective x pooling: plan, train side by side, page (ARGS=--dry_run: the plan)
	$(PY) -m maeclip_jax.study --data='$(if $(filter command line,$(origin DATA)),$(DATA),scenes)' $(strip $(AXES)) \
		--topology='$(if $(filter command line,$(origin TOPOLOGY)),$(TOPOLOGY),cpu)' \
		$(if $(filter command line environment,$(origin JOBS)),--jobs=$(JOBS)) --out='$(STUDY)' $(ARGS)

study-report: $(STAMP)  ## the page, figure and numbers of the study in OUT=results/study anew, from its results alone
	$(PY) -m maeclip_jax.study --report --out='$(STUDY)'

bench: $(STAMP)  ## step time, images/s, MFU, memory, input speed of CONFIG, as table and JSON
	$(PY) -m maeclip_jax.bench step --config='$(CONFIG)' $(ARGS)

bench-probe: $(STAMP)  ## seconds of a linear probe on 50,000 x 768 features and 1000 classes (ARGS="--rows 4000 --compare")
	$(PY) -m maeclip_jax.bench probe $(ARGS)

preflight: $(STAMP)  ## would CONFIG fit TOPOLOGY=v5litepod-256, how fast, at what cost? Needs no TPU (EXTRAS=test,tpu-compile)
	$(PY) -m maeclip_jax.preflight --config='$(CONFIG)' --topology='$(TOPOLOGY)' $(ARGS)

preflight-all: $(STAMP)  ## table of the shipped experiments on their slices, minutes a row (SELECT=regex: some; ROWS=folder: keeps them)
	$(PY) -m maeclip_jax.preflight --all --select='$(SELECT)' --rows='$(ROWS)' $(ARGS)

bench-input: $(STAMP)  ## pictures/s/core of decode and crop, ours against Pillow (and tf.data if installed): IMAGES=folder
	$(PY) -m maeclip_jax.bench input --images '$(IMAGES)'

doctor: $(STAMP)  ## what this machine has, and whether jax uses it
	$(PY) -m maeclip_jax.preflight.doctor

test:  ## lint and the tests, JOBS=2 files at a time (0: one after another); installs the TPU compiler for the pre-flight's
	@$(MAKE) -s install EXTRAS=$(EXTRAS),tpu-compile
	$(PY) -m ruff check -q . && $(PY) -m ruff format --check -q . && $(VENV)/bin/lint-imports --no-logo
	$(PY) -m pytest tests -q -n $(JOBS) --dist loadfile --max-worker-restart 2 -m 'not long' $(ARGS)

test-long:  ## the tests that `make test` leaves out: whole ways of a user that others hold in parts, more meshes and sizes
	@$(MAKE) -s install EXTRAS=$(EXTRAS),tpu-compile
	$(PY) -m pytest tests -q -n $(JOBS) --dist loadfile --max-worker-restart 2 -m long $(ARGS)

test-unit:  ## lint and the tests that take seconds a file, no whole runs and no pods (minutes on 2 cores)
	@$(MAKE) -s install EXTRAS=$(EXTRAS)
	$(PY) -m ruff check -q . && $(PY) -m ruff format --check -q .
	$(PY) -m pytest tests -q -n $(JOBS) --dist loadfile -m 'not run and not pod and not long' $(ARGS)

test-parity:  ## models and metrics compared with transformers, open_clip, torchmetrics, ... (installs torch into .venv)
	@$(MAKE) -s install EXTRAS=test,parity
	$(PY) -m pytest tests/parity -q $(ARGS)

# Old libraries beside newer ones call what these deprecate, as matplotlib 3.9 does of pyparsing 3.3: no errors here.
test-lowest:  ## all tests with the oldest versions that setup.cfg allows, in .venv-lowest (Python 3.11 or 3.12)
	@test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e '.[test,tpu-compile]'
	.venv-lowest/bin/python -m pytest tests -q -n $(JOBS) --dist loadfile --max-worker-restart 2 \
		-W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning $(ARGS)

notebooks: $(STAMP)  ## run the notebooks top to bottom and keep their outputs, 20 minutes on 2 cores (ARGS=4_preflight: one)
	$(PY) -m tests.notebooks $(ARGS)

lint: $(STAMP)  ## ruff: fix what can be fixed, format
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .

golden: $(STAMP)  ## rewrite the golden files of all experiments (review the diff)
	$(PY) -m tests.golden

clean:  ## remove caches and build products (never data/ or runs/)
	rm -rf .pytest_cache .ruff_cache build *.egg-info && find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +

include tpu/targets.mk

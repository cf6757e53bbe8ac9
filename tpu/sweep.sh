#!/usr/bin/env bash
# Runs SWEEP (experiments/sweeps/SWEEP.py) on the slice, one run after the other, each supervised by babysit.sh, in
# ROOT=gs://bucket/runs; repeated, a finished run only costs a start. ARGS go to every run. Python: PY=.venv/bin/python.
source "$(dirname "$0")/slice.sh"
need NAME ZONE TYPE SWEEP ROOT
cd "$REPOSITORY"

# CONFIG, WORKDIR and ARGS of every run, between tabs.
list() {
  "${PY:-.venv/bin/python}" - "$SWEEP" "$ROOT" <<'PYTHON'
import os, shlex, sys
from maeclip_jax import cli, sweep

def run(name, root):
    for experiment, argument, settings in sweep.runs_of(name):
        workdir = f"{root}/{os.path.basename(name).removesuffix('.py')}/{sweep.label(experiment, argument, settings)}"
        given = shlex.join(f"--config.{k}={v}" for k, v in settings.items())
        print(f"experiments/{experiment}.py:{argument}", workdir, given, sep="\t")

sys.exit(cli.guarded(lambda: run(*sys.argv[1:])))
PYTHON
}

runs=$(list)
[[ -n ${DRY_RUN:-} ]] || pack_now # all runs use the same code
common=${ARGS:-} failed=()
while IFS=$'\t' read -r CONFIG WORKDIR ARGS <&3; do
  ARGS+=" $common"
  export CONFIG WORKDIR ARGS
  echo "sweep $SWEEP: $CONFIG in $WORKDIR"
  code=0
  tpu/babysit.sh || code=$?
  ((code != 1)) || exit 1 # stopped on request
  ((code == 0)) || failed+=("$WORKDIR")
done 3<<<"$runs"
((${#failed[@]} == 0)) || fail "${#failed[@]} runs failed: ${failed[*]}; the same command tries again"

#!/usr/bin/env bash
# Prints the state of the slice and of the job on every worker, with the last line of its log.
source "$(dirname "$0")/slice.sh"
need NAME ZONE
found=$(state READY)
[[ -n ${DRY_RUN:-} ]] || echo "$NAME in $ZONE: $found"
[[ $found != MISSING ]] || not_otherwise
otherwise="echo 'worker: no code yet (make tpu-setup)'"
[[ $found != READY ]] ||
  on_workers "if [ -e $WORKER_SCRIPT ]; then bash $WORKER_SCRIPT state; else $otherwise; fi"

#!/usr/bin/env bash
# Prints the last LINES=100 lines of a job's log; with -f it follows the log until Ctrl-C. WORKER=0, 1, ... or all,
# with its number before every line; with several slices, it is that worker of each.
source "$(dirname "$0")/slice.sh"
need NAME ZONE
[[ $# == 0 || $* == -f ]] || fail "logs.sh $*; valid: nothing or -f"
must_be_ready
WORKER=${WORKER:-0}
export WORKER
on_workers "bash $WORKER_SCRIPT logs ${LINES:-100} $*"

#!/usr/bin/env bash
# The last LINES=100 lines of a job's log; -f: and what comes, until Ctrl-C. WORKER=0, 1, ... or all, with its number
# before every line; of several slices, that worker of each.
source "$(dirname "$0")/slice.sh"
need NAME ZONE
[[ $# == 0 || $* == -f ]] || fail "logs.sh $*; valid: nothing or -f"
must_be_ready
WORKER=${WORKER:-0}
export WORKER
on_workers "bash $WORKER_SCRIPT logs ${LINES:-100} $*"

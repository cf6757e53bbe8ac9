#!/usr/bin/env bash
# Stops the job on every worker: it saves its step, and `run.sh` continues it. After GRACE=120 seconds it is killed.
source "$(dirname "$0")/slice.sh"
need NAME ZONE
must_be_ready
confirm "stop the job on $NAME in $ZONE"
on_workers "bash $WORKER_SCRIPT stop ${GRACE:-120}"

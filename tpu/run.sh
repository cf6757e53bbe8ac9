#!/usr/bin/env bash
# Starts `maeclip_jax.main --config=CONFIG --workdir=WORKDIR ARGS` on every worker, detached. Repeated while the
# job runs, it changes nothing; afterwards, it resumes the run. DATA=gs://bucket/data, ENV="NAME=VALUE ...".
source "$(dirname "$0")/slice.sh"
need NAME ZONE CONFIG WORKDIR
need_shared_workdir
must_be_ready
on_workers "$(remote start --config="$CONFIG" --workdir="$WORKDIR" "${arguments[@]}")"

#!/usr/bin/env bash
# Starts `maeclip_jax.main --config=CONFIG --workdir=WORKDIR ARGS` on every worker, detached; the same again while it
# runs changes nothing, and later it continues the run. DATA=gs://bucket/data, ENV="NAME=VALUE ...".
source "$(dirname "$0")/slice.sh"
need NAME ZONE CONFIG WORKDIR
[[ $WORKDIR == gs://* || $WORKDIR == /* ]] ||
  fail "WORKDIR=$WORKDIR would be a folder of every worker's own; valid: gs://bucket/..., or an absolute path all share"
must_be_ready
mapfile -t words < <(split "${ARGS:-}")
on_workers "$(remote start --config="$CONFIG" --workdir="$WORKDIR" "${words[@]}")"

#!/usr/bin/env bash
# Creates the slice (or slices) NAME of TYPE in ZONE if it does not exist, and waits until it is READY.
# SPOT=1, RESERVED=1, QUEUED=1 (wait in the queue), SLICES=2 (several slices, always queued), RUNTIME= software version,
# CREATE_FLAGS="--network=... --service-account=..." further flags of gcloud.
source "$(dirname "$0")/slice.sh"
need NAME ZONE TYPE

runtime() {
  case $TYPE in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "TYPE=$TYPE; valid: v2-8, v3-32, v4-128, v5litepod-256, v5p-256, v6e-256, or another with RUNTIME=..." ;;
  esac
}

make_it() {
  local flags=("${create_flags[@]}")
  [[ -z ${SPOT:-} ]] || flags+=(--spot)
  [[ -z ${RESERVED:-} ]] || flags+=(--reserved)
  if [[ -z $QUEUED ]]; then
    tpus tpu-vm create "$NAME" --accelerator-type="$TYPE" --version="$RUNTIME" "${flags[@]}"
  elif ((SLICES == 1)); then
    tpus queued-resources create "$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
      --node-id="$NAME" "${flags[@]}"
  else
    tpus queued-resources create "$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
      --node-count="$SLICES" --node-prefix="$NAME" "${flags[@]}"
  fi
}

[[ -n ${RUNTIME:-} ]] || RUNTIME=$(runtime)
found=$(state MISSING)
if [[ $found == MISSING ]]; then
  make_it
  found=$(state READY)
fi
while [[ $found != READY ]]; do
  case $found in
    PREEMPTED | TERMINATED | FAILED | SUSPEND* | STOPP* | DELETING)
      echo "error: $NAME in $ZONE is $found; \`make tpu-delete\` first, or \`make tpu-babysit\`, which does that" >&2
      exit 1 # not 2: the command is right
      ;;
  esac
  echo "$NAME in $ZONE is $found; looking again in $POLL s"
  sleep "$POLL"
  found=$(state READY)
done
[[ -n ${DRY_RUN:-} ]] || echo "$NAME in $ZONE is READY"

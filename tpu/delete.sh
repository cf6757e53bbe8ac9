#!/usr/bin/env bash
# Deletes the slice (or slices) NAME with everything on its disks. The files in WORKDIR are kept.
source "$(dirname "$0")/slice.sh"
need NAME ZONE
found=$(state READY)
if [[ $found == MISSING ]]; then
  not_otherwise
  echo "$NAME in $ZONE is not there"
  exit
fi
confirm "delete $NAME in $ZONE, which is $found"
if [[ -n $QUEUED ]]; then
  tpus queued-resources delete "$NAME" --force
else
  tpus tpu-vm delete "$NAME"
fi
[[ -n ${DRY_RUN:-} ]] || echo "$NAME in $ZONE is deleted; a babysitter that still watches it makes it again"

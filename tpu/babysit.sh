#!/usr/bin/env bash
# Sees a run through to its end: makes the slice where it is missing or was taken away (PREEMPTED, ...), sets it up,
# starts the run, which continues from its checkpoint, and looks every POLL=30 seconds. Variables: create.sh and run.sh.
# The code is that of the moment when this begins. Ends with 0: finished; 1: stopped with stop.sh; 2: a mistake in the
# command (exit code 2 of every worker), or RETRIES=3 failures in a row, each within STEADY=600 seconds of its start.
source "$(dirname "$0")/slice.sh"
need NAME ZONE TYPE CONFIG WORKDIR
here=$REPOSITORY/tpu
export YES=1 # only what is dead is deleted, only what is stuck is stopped
RETRIES=${RETRIES:-3}
STEADY=${STEADY:-600}

say() { echo "$(date '+%F %T') $NAME: $*"; }

if [[ -n ${DRY_RUN:-} ]]; then # what is done after a preemption
  "$here/delete.sh" && "$here/create.sh" && "$here/setup.sh" && "$here/run.sh"
  exit
fi
if [[ -z ${PACK:-} ]]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  export PACK=$folder/maeclip-code.tgz
  "$here/push.sh" pack "$PACK"
fi

# What the workers' jobs do, every word once: `running`, `finished`, `failed 2,running`, ...; or unreachable.
jobs_now() {
  local said asked words=()
  mapfile -t words < <(split "${ARGS:-}")
  asked=$(remote state --config="$CONFIG" --workdir="$WORKDIR" "${words[@]}")
  if said=$(on_workers "if [ -e $WORKER_SCRIPT ]; then $asked; else echo 'worker 0.0: idle |'; fi" 2>/dev/null); then
    sed -n 's/^worker [0-9.]*: \([a-z0-9 ]*\) |.*/\1/p' <<<"$said" | sort -u | paste -sd ,
  else
    echo unreachable
  fi
}

# Starts the run everywhere, whatever is left of an earlier start.
begin() {
  on_workers "if [ -e $WORKER_SCRIPT ]; then bash $WORKER_SCRIPT stop ${GRACE:-120}; fi" >/dev/null || return 1
  "$here/setup.sh" && "$here/run.sh" && begun=$SECONDS ours=1
}

last_words() {
  WORKER=all on_workers "bash $WORKER_SCRIPT logs 15" 2>/dev/null | sed 's/^/  /' || true
}

# failed WHAT: counts failures; the last one ends this.
failed() {
  if ((SECONDS - begun > STEADY)); then failures=0; fi
  failures=$((failures + 1))
  say "$1 (failure $failures of $RETRIES in a row)"
  last_words
  ((failures < RETRIES)) || fail "$NAME: $RETRIES failures in a row, each within $STEADY s of its start; the last: $1"
}

failures=0 begun=$SECONDS uneven=0 before='' ours=''
while true; do
  found=$(state '')
  now=$found
  [[ $found != READY ]] || now=$(jobs_now)
  [[ $now == "$before" ]] || say "$now"
  before=$now
  # What an earlier run left behind is a reason to begin; what became of one that was seen running is judged.
  [[ $now != *running* ]] || ours=1
  [[ $now == *running*,* || $now == *,running* ]] || uneven=0
  case $found,$now, in
    PREEMPTED,* | TERMINATED,* | FAILED,* | SUSPENDED,*)
      "$here/delete.sh" && continue
      say "not deleted; again in $POLL s"
      ;;
    MISSING,*)
      "$here/create.sh" && continue
      say "not to be had now; again in $POLL s"
      ;;
    STOPPED,*) fail "$NAME is STOPPED: someone did that; start or delete it first" ;;
    READY,finished,) exit 0 ;;
    READY,*busy,*) fail "another job runs on $NAME; \`make tpu-status\` shows it, \`make tpu-stop\` stops it" ;;
    READY,running,) ;;
    READY,*running,*) # some have left: the others follow by themselves, or are stuck
      uneven=$((uneven + 1))
      if ((uneven > 3)); then
        failed "some workers run, others do not: $now"
        begin || say "not started; again in $POLL s"
      fi
      ;;
    READY,*stopped,*)
      if [[ -n $ours ]]; then
        say "stopped on request; the same command continues the run"
        exit 1
      fi
      begin || say "not started; again in $POLL s"
      ;;
    READY,*failed* | READY,*lost,*)
      if [[ -n $ours && $now == 'failed 2' ]]; then # on all workers; where one is missing, the others leave with 2, too
        last_words
        fail "$NAME: the run ended with code 2, a mistake in its command or settings, which trying again does not cure"
      fi
      [[ -z $ours ]] || failed "$now"
      begin || say "not started; again in $POLL s"
      ;;
    READY,*interrupted,* | READY,*idle,*)
      begin || say "not started; again in $POLL s"
      ;;
  esac
  sleep "$POLL"
done

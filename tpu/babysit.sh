#!/usr/bin/env bash
# Sees a run through to its end: makes the slice where it is missing or was taken away (PREEMPTED, ...), sets it up,
# starts the run, which continues from its checkpoint, and looks every POLL=30 seconds. Variables: create.sh and run.sh.
# The code is that of the moment when this begins. Ends with 0: finished; 1: stopped with stop.sh; 2: a mistake in the
# command, RETRIES=3 failures without a new checkpoint between them, or a slice that for PATIENCE=600 seconds does not
# answer or cannot be set up.
source "$(dirname "$0")/slice.sh"
need NAME ZONE TYPE CONFIG WORKDIR
need_shared_workdir
here=$REPOSITORY/tpu
export YES=1 # only what is dead is deleted, only what is stuck is stopped
RETRIES=${RETRIES:-3}
PATIENCE=${PATIENCE:-600}

if [[ -n ${DRY_RUN:-} ]]; then # what is done after a preemption
  "$here/delete.sh" && "$here/create.sh" && "$here/setup.sh" && "$here/run.sh"
  exit
fi
pack_now
question=$(remote state --config="$CONFIG" --workdir="$WORKDIR" "${arguments[@]}")
question="if [ -e $WORKER_SCRIPT ]; then $question; else echo 'worker 0.0: idle |'; fi"

say() { echo "$(date '+%F %T') $NAME: $*"; }

# give_up WHAT: the slice is left as it is, for someone to look at.
give_up() { fail "$NAME: $*; the slice is still there (\`make tpu-delete\`)"; }

# What the workers' jobs do, every word once: `running`, `finished`, `failed 2,running`, ...; unreachable, where some do
# not answer.
jobs_now() {
  local said silent=''
  said=$(on_workers "$question" 2>"$folder/errors") || silent=unreachable
  {
    sed -n 's/^worker [0-9.]*: \([a-z0-9 ]*\) |.*/\1/p' <<<"$said"
    [[ -z $silent ]] || echo $silent
  } | sort -u | paste -sd ,
}

# in_vain WHAT: counts what may pass by itself, until all is well again; after PATIENCE seconds it is the end.
in_vain() {
  vain=$((vain + 1))
  say "$1; again in $POLL s"
  ((vain < RETRIES || SECONDS - well < PATIENCE)) || give_up "nothing helped for $((SECONDS - well)) s; the last: $1"
}

# Starts the run everywhere, whatever is left of an earlier start.
begin() {
  ours='' # what is stopped here was not stopped by someone else
  if on_workers "if [ -e $WORKER_SCRIPT ]; then bash $WORKER_SCRIPT stop ${GRACE:-120}; fi" >/dev/null &&
    "$here/setup.sh" && "$here/run.sh"; then
    ours=1 starts=$((starts + 1))
  else
    in_vain "not started"
  fi
}

last_words() {
  WORKER=all on_workers "bash $WORKER_SCRIPT logs 15" 2>/dev/null | sed 's/^/  /' || true
}

# The step that the last start continued from; 0 where it began anew, or did not come so far.
continued() {
  local said
  said=$(on_workers "grep -h -o 'continuing from step [0-9]*' maeclip/run/log.txt || true" 2>/dev/null) || true
  grep -o '[0-9]*$' <<<"$said" | sort -n | tail -n 1 | grep . || echo 0
}

# failed WHAT: counts failures; a checkpoint that is newer than at the failure before makes it the first again.
failed() {
  local step
  step=$(continued)
  if ((step > reached)); then failures=0 reached=$step; fi
  failures=$((failures + 1))
  say "$1 (failure $failures of $RETRIES without a new checkpoint)"
  last_words
  ((failures < RETRIES)) || give_up "$RETRIES failures without a new checkpoint between them; the last: $1"
}

failures=0 reached=0 starts=0 uneven=0 vain=0 well=$SECONDS before='' ours=''
while true; do
  found=$(state '')
  now=$found
  [[ $found != READY ]] || now=$(jobs_now)
  [[ $now == "$before" ]] || say "$now"
  before=$now
  # What an earlier run left behind is a reason to begin; what became of one that was seen running is judged.
  [[ $now != *running* ]] || ours=1
  [[ $now == *running*,* || $now == *,running* ]] || uneven=0
  [[ $found == READY && $now != running && $now != running,unreachable ]] || vain=0 well=$SECONDS
  if [[ -n $ours && $now == *stopped* && $now != *running* ]]; then
    say "stopped on request; the same command continues the run"
    exit 1
  fi
  case $found,$now, in
    PREEMPTED,* | TERMINATED,* | FAILED,* | SUSPENDED,*)
      "$here/delete.sh" && continue
      say "not deleted; again in $POLL s"
      ;;
    MISSING,*)
      code=0
      "$here/create.sh" || code=$?
      if ((code == 0)); then
        well=$SECONDS
        continue
      fi
      ((code != 2)) || fail "$NAME: there is a mistake in what is to be created"
      say "not to be had now; again in $POLL s"
      ;;
    STOPPED,*) fail "$NAME is STOPPED: someone did that; start or delete it first" ;;
    READY,finished, | READY,finished,unreachable,) exit 0 ;; # nobody finishes alone
    READY,*busy,*) fail "another job runs on $NAME; \`make tpu-status\` shows it, \`make tpu-stop\` stops it" ;;
    READY,running, | READY,running,unreachable,) ;; # nobody runs alone, either
    READY,unreachable,) in_vain "no worker answers: $(tail -n 1 "$folder/errors")" ;;
    READY,*,unreachable,) # the others have left: in a minute it may be back; else it takes another machine
      if ((SECONDS - well < PATIENCE)); then
        in_vain "$now: $(tail -n 1 "$folder/errors")"
      else
        failed "$now: $(tail -n 1 "$folder/errors")"
        "$here/delete.sh" || say "not deleted; again in $POLL s"
      fi
      ;;
    READY,*running,*) # some have left: the others follow by themselves, or are stuck
      uneven=$((uneven + 1))
      if ((uneven > 3)); then
        failed "some workers run, others do not: $now"
        begin
      fi
      ;;
    READY,*stopped,*) begin ;;
    READY,*failed* | READY,*lost,*)
      # Code 2 on all workers is a mistake of the user's, unless it had worked before: then it may be the storage.
      if [[ -n $ours && $now == 'failed 2' ]] && ((starts < 2)); then
        last_words
        give_up "the run ended with code 2, a mistake in its command or settings, which trying again does not cure"
      fi
      [[ -z $ours ]] || failed "$now"
      begin
      ;;
    READY,*interrupted,* | READY,*idle,*) begin ;;
  esac
  sleep "$POLL"
done

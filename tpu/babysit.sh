#!/usr/bin/env bash
# Supervises a run until it finishes: creates the slice if it is missing or was preempted, sets it up, starts the run,
# which resumes from its checkpoint, and polls the workers every POLL=30 seconds. Variables: create.sh and run.sh.
# The code is a copy made when this script starts. Exit codes: 0: finished; 1: stopped with stop.sh; 2: an error in the
# command, RETRIES=3 failures without a new checkpoint between them, or a slice that for PATIENCE=600 seconds does not
# answer or cannot be set up.
source "$(dirname "$0")/slice.sh"
need NAME ZONE TYPE CONFIG WORKDIR
need_shared_workdir
here=$REPOSITORY/tpu
export YES=1 # only a dead slice is deleted, and only a stuck job is stopped
RETRIES=${RETRIES:-3}
PATIENCE=${PATIENCE:-600}

if [[ -n ${DRY_RUN:-} ]]; then # shows the commands that follow a preemption
  "$here/delete.sh" && "$here/create.sh" && "$here/setup.sh" && "$here/run.sh"
  exit
fi
pack_now
question=$(remote state --config="$CONFIG" --workdir="$WORKDIR" "${arguments[@]}")
question="if [ -e $WORKER_SCRIPT ]; then $question; else echo 'worker 0.0: idle |'; fi"

say() { echo "$(date '+%F %T') $NAME: $*"; }

# give_up WHAT: leaves the slice as it is, so that it can be inspected.
give_up() { fail "$NAME: $*; the slice is still there (\`make tpu-delete\`)"; }

# The distinct states of the workers' jobs: `running`, `finished`, `failed 2,running`, ...; `unreachable` if some
# workers do not answer.
jobs_now() {
  local said silent=''
  said=$(on_workers "$question" 2>"$folder/errors") || silent=unreachable
  {
    sed -n 's/^worker [0-9.]*: \([a-z0-9 ]*\) |.*/\1/p' <<<"$said"
    [[ -z $silent ]] || echo $silent
  } | sort -u | paste -sd ,
}

# in_vain WHAT: tolerates a problem that may be temporary; gives up if it lasts for PATIENCE seconds.
in_vain() {
  vain=$((vain + 1))
  say "$1; again in $POLL s"
  ((vain < RETRIES || SECONDS - well < PATIENCE)) || give_up "nothing helped for $((SECONDS - well)) s; the last: $1"
}

# Starts the run on all workers, whatever state an earlier start has left.
begin() {
  ours='' # a job that is stopped here was not stopped by the user
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

# The step that the last start resumed from; 0 if it started from scratch or failed earlier.
continued() {
  local said
  said=$(on_workers "grep -h -o 'continuing from step [0-9]*' maeclip/run/log.txt || true" 2>/dev/null) || true
  grep -o '[0-9]*$' <<<"$said" | sort -n | tail -n 1 | grep . || echo 0
}

# failed WHAT: counts failures; the count restarts if there is a newer checkpoint than at the previous failure.
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
  # A state left by an earlier run is a reason to start; only a job that was seen running can count as a failure.
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
      ((code != 2)) || fail "$NAME: the create command has an error"
      say "not to be had now; again in $POLL s"
      ;;
    STOPPED,*) fail "$NAME is STOPPED: it was stopped by hand; start or delete it first" ;;
    READY,finished, | READY,finished,unreachable,) exit 0 ;; # workers finish together
    READY,*busy,*) fail "another job runs on $NAME; \`make tpu-status\` shows it, \`make tpu-stop\` stops it" ;;
    READY,running, | READY,running,unreachable,) ;; # workers also run together
    READY,unreachable,) in_vain "no worker answers: $(tail -n 1 "$folder/errors")" ;;
    READY,*,unreachable,) # the others have ended; the worker may be back in a minute, or else another machine is needed
      if ((SECONDS - well < PATIENCE)); then
        in_vain "$now: $(tail -n 1 "$folder/errors")"
      else
        failed "$now: $(tail -n 1 "$folder/errors")"
        "$here/delete.sh" || say "not deleted; again in $POLL s"
      fi
      ;;
    READY,*running,*) # some have ended; the others end by themselves or are stuck
      uneven=$((uneven + 1))
      if ((uneven > 3)); then
        failed "some workers run, others do not: $now"
        begin
      fi
      ;;
    READY,*stopped,*) begin ;;
    READY,*failed* | READY,*lost,*)
      # Code 2 on all workers is a user error, unless the run has worked before: then the storage may have failed.
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

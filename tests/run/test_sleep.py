"""A machine that sleeps: it is seen and said, no time counts it, and a save that it spoils is made again."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax import report
from maeclip_jax.parallel import sleep
from maeclip_jax.run import checkpoint, clock, saving
from maeclip_jax.run.throughput import Throughput
from tests import runs, torture

CONFIG = f"{runs.TINY}:objective=clip,steps=12,save=3,evals=False"
ASLEEP = 12  # seconds


class Machine:
    """Three clocks (see `sleep._now`) and a thread that looks at them every second, as `sleep.watch` starts it."""

    def __init__(self):
        self.wall, self.counted, self.used = 1e6, 500.0, 30.0

    def now(self):
        return self.wall, self.counted, self.used

    def passes(self, seconds: int, counted: bool = True, used: float = 0.0, looks: bool = True) -> None:
        for _ in range(seconds):
            self.wall += 1
            self.counted += counted
            self.used += used
            if looks:
                sleep.look()


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(sleep, "_now", made.now)
    monkeypatch.setattr(sleep, "_thread", object())
    monkeypatch.setattr(sleep, "_last", made.now())
    for name in ("_slept", "_unreal"):
        monkeypatch.setattr(sleep, name, 0.0)
    return made


@pytest.mark.parametrize("counted", [True, False])
def test_a_sleep_is_seen_by_whoever_wakes_first_and_said_once(counted, machine, caplog):
    """`counted`: stopped, or suspended, when Linux's monotonic clock stands still."""
    machine.passes(5)
    before = sleep.awake()
    machine.passes(1440, counted, looks=False)
    assert sleep.awake() - before == 1 if counted else sleep.awake() == before
    machine.passes(5)
    assert sleep.awake() - before == 5 + counted and sleep.slept() == 1439
    (said,) = [r.getMessage() for r in caplog.records]
    assert said == "the machine slept for 1439 s, or this process was stopped; times, rates and costs leave it out"


def test_a_busy_process_whose_threads_had_no_turn_did_not_sleep(machine, caplog):
    machine.passes(60, used=0.9, looks=False)
    assert sleep.slept() == 0 and not caplog.records
    machine.passes(9, looks=False)  # short: no more than a hiccup
    assert sleep.slept() == 0


def test_times_rates_and_what_is_left_do_not_count_it(machine):
    run = clock.Clock({"train": 100.0, "slept": 7.0})
    run.start_loop()
    progress = Throughput(0, 100, 16, 1e9, 1e12, 1, 1, run.seconds)
    machine.passes(10)
    with run.phase("checkpoint"):
        machine.passes(2)
        machine.passes(1440, looks=False)
        assert run.look()[2] == 3  # what a watchdog sees: 2 s, and the second of the last look
        machine.passes(1)
    found = progress.measure(10, run.seconds)
    assert found["perf/step_seconds"] == 1.0 and found["progress/eta_seconds"] == pytest.approx(90 * 14 / 10)
    run.stop_loop()
    assert run.seconds == dict(compile=0, restore=0, train=110, input_wait=0, checkpoint=4, eval=0, slept=7 + 1439)
    assert "slept" not in clock.Clock().seconds or sleep.slept()


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """Checkpoints whose first save lasts until orbax's patience is over; the machine slept meanwhile for slow.slept."""
    from orbax.checkpoint import JsonCheckpointHandler

    monkeypatch.setattr(saving, "TIMEOUT_SECONDS", 1)
    write, saves = JsonCheckpointHandler._save_fn, []

    async def late(handler, x, directory):
        saves.append(x)
        if len(saves) == 1:
            time.sleep(3)
        return await write(handler, x, directory)

    monkeypatch.setattr(JsonCheckpointHandler, "_save_fn", late)
    made = saving.Checkpoints(tmp_path)
    made.slept = 0.0
    monkeypatch.setattr(sleep, "slept", lambda: made.slept)
    made.save(1, {"a": jnp.full(3, 1.0)}, {"step": 1})
    monkeypatch.setattr(saving, "TIMEOUT_SECONDS", 600)
    return made


def test_a_save_that_a_sleep_spoilt_can_be_made_again_at_the_same_step(slow, tmp_path, caplog):
    slow.slept = 1440.0
    assert not slow.wait() and slow.latest() is None and not list(tmp_path.iterdir())
    (said,) = [r.getMessage() for r in caplog.records if r.name == "maeclip_jax"]
    assert said == "the machine slept while step 1 was being saved, which failed; saving again"
    slow.save(1, {"a": jnp.full(3, 2.0)}, {"step": 1})
    assert slow.wait() and slow.steps() == [1]
    slow.close()
    np.testing.assert_array_equal(checkpoint.read_numpy(tmp_path / "1" / "state")["a"], np.full(3, 2.0))


def test_a_save_that_takes_too_long_without_a_sleep_is_an_error(slow):
    with pytest.raises(TimeoutError):
        slow.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
@pytest.mark.parametrize("timeout", ["", pytest.param("8", marks=pytest.mark.long)])
def test_a_run_that_is_stopped_while_it_saves_goes_on(timeout, tmp_path):
    """Orbax's patience ends in the sleep, or it does not (as it is set, it takes a day): the run ends as any other."""
    reference, said = runs.folder() / "never-asleep", tmp_path / "said.txt"
    if not reference.exists():
        assert torture.finish(torture.command(reference, CONFIG), said) == 0, runs.text(said)
    marker, run = tmp_path / "saving", tmp_path / "run"
    args = torture.command(run, CONFIG, "--stall_seconds=8", "--stall_factor=1")[3:]
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "tests/sleeper.py", str(marker), *args], cwd=torture.ROOT, stdout=file, stderr=file,
            env=os.environ | {"PYTHONPATH": str(torture.ROOT)} | ({"TIMEOUT": timeout} if timeout else {}),
        )  # fmt: skip
    try:
        while not marker.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        time.sleep(ASLEEP)
        process.send_signal(signal.SIGCONT)
        assert process.wait(600) == 0, runs.text(said)
    finally:
        process.kill()
    text = said.read_text()
    slept = json.loads((run / "costs.json").read_text())["seconds"]["slept"]
    assert text.count("WARNING: the machine slept for ") == 1 and slept >= ASLEEP - 2
    assert ("WARNING: the machine slept while step 3 was being saved, which failed; saving again" in text) == bool(
        timeout
    )
    assert "Traceback" not in text and "watchdog" not in text.replace("watchdog: start-up", "")
    ours, theirs = torture.arrays(run), torture.arrays(reference)
    assert ours.keys() == theirs.keys() and all((ours[k] == theirs[k]).all() for k in ours)
    assert runs.series(run) == runs.series(reference) and torture.steps(run) == [9, 12]
    page = report.write(run).with_name("report.md").read_text()
    assert re.search(r"time asleep, left out of all others \| 1\d s \|", page), page

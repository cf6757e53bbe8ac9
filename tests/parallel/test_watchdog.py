"""The watchdog: stacks once a stall, nothing on a normal run, and it never ends anything."""

import io
import threading
import time

from maeclip_jax import remote
from maeclip_jax.parallel import watchdog
from maeclip_jax.run import startup
from tests import runs


class Run:
    """What a watchdog looks at."""

    def __init__(self):
        self.trained, self.doing, self.paused = 0.0, "", 0.0

    def look(self):
        return self.trained, self.doing, self.paused


def stepped(file, *, steps: int = 5) -> tuple[Run, watchdog.Watchdog]:
    """A run in whose steps 1 to `steps` a second each went by; the next one has begun."""
    run = Run()
    dog = watchdog.Watchdog(watchdog.Limits(10, 60, 1800), run.look, file)
    for step in range(1, steps + 2):
        dog.beat(step)
        run.trained += step <= steps
    return run, dog


def test_a_stalled_step_is_said_once_with_all_stacks(tmp_path):
    asleep = threading.Event()
    thread = threading.Thread(target=asleep.wait, name="sleeper", daemon=True)
    thread.start()
    with (tmp_path / "said").open("w+") as file:
        run, dog = stepped(file)
        run.trained += 59
        assert not dog.check()
        run.trained += 2
        run.doing = "input_wait"
        assert dog.check() and not dog.check()
        asleep.set()
        file.seek(0)
        said = file.read()
        assert said.startswith(
            "watchdog: step 6 has taken 61 s, in input_wait (reported after 60 s; the median of 5 is 1 s); the run "
            "goes on waiting; stacks of all threads:\n"
        )
        assert said.count("most recent call first") >= 2 and "test_watchdog.py" in said and "in wait" in said
        dog.beat(7)
        run.trained += 100
        assert dog.check()  # another stall
        file.seek(len(said))
        assert file.read().startswith("watchdog: step 6 went on\nwatchdog: step 7 has taken 100 s")


def test_a_step_that_waits_for_storage_as_was_said_has_no_stacks(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_told", time.monotonic())
    with (tmp_path / "said").open("w+") as file:
        run, dog = stepped(file)
        run.trained += 100
        assert not dog.check()
        monkeypatch.setattr(remote, "_told", time.monotonic() - 100)  # no longer said
        assert dog.check()


def test_slow_steps_have_slow_peers():
    run = Run()
    dog = watchdog.Watchdog(watchdog.Limits(10, 60), run.look, io.StringIO())
    for step in range(1, 5):
        dog.beat(step)
        run.trained += 20
    run.trained += 150
    assert not dog.check()  # 170 s: less than ten medians of 20 s
    run.trained += 40
    assert dog.check()


def test_pauses_are_not_steps(tmp_path):
    with (tmp_path / "said").open("w+") as file:
        run, dog = stepped(file)
        run.doing, run.paused = "eval", 1000.0
        assert not dog.check()
        run.paused = 1801.0
        assert dog.check() and not dog.check()
        file.seek(0)
        assert file.readline() == (
            "watchdog: eval has taken 1801 s (reported after 1800 s); the run goes on waiting; stacks of all threads:\n"
        )


def test_a_start_that_does_not_end_is_said(tmp_path):
    """Devices, a restore or the first batch may hang as well; once the first step is done, that watch is over."""
    start = startup.Startup(1000)
    with (tmp_path / "said").open("w+") as file:
        dog = watchdog.Watchdog(watchdog.Limits(pause_seconds=1800), start.look, file)
        assert not dog.check()
        dog = watchdog.Watchdog(watchdog.Limits(pause_seconds=900), start.look, file)
        assert dog.check() and not dog.check()
        file.seek(0)
        assert file.readline().startswith("watchdog: start-up has taken 1000 s (reported after 900 s); the run goes on")
        start.finish()
        assert not watchdog.Watchdog(watchdog.Limits(pause_seconds=900), start.look, file).check()


def test_without_a_real_file_it_does_not_fail(capfd):
    run, dog = stepped(io.StringIO())
    run.trained += 61
    assert dog.check()


def test_the_thread_looks_by_itself_and_goes(tmp_path):
    with (tmp_path / "said").open("w+") as file:
        begun = time.monotonic()
        with watchdog.Watchdog(watchdog.Limits(2, 0.2), lambda: (time.monotonic() - begun, "", 0.0), file) as dog:
            dog.beat(1)
            deadline = time.monotonic() + 600
            while not file.tell() and time.monotonic() < deadline:
                time.sleep(0.02)
        file.seek(0)
        assert "watchdog: step 1 has taken 0 s (reported after 0 s; there is no other step" in file.read()
        assert "watchdog" not in [t.name for t in threading.enumerate()]
        with watchdog.Watchdog(watchdog.Limits(seconds=0), lambda: (0.0, "", 0.0), file):
            assert "watchdog" not in [t.name for t in threading.enumerate()]


def test_a_stall_in_a_run_is_said_and_a_normal_run_is_silent(tmp_path, monkeypatch, capfd):
    """The data stall at one step until that is said, and for three looks more: stacks once, and the run ends."""
    from maeclip_jax.run import feed, train

    config = runs.config("objective=clip,steps=8,save=8,evals=false")
    train.run(config, tmp_path / "normal", limits=watchdog.Limits(1000, 60))
    assert "watchdog" not in capfd.readouterr().err
    place, calls, check, looks, stalled = feed.sharding.place, [], watchdog.Watchdog.check, [], []

    def look(dog):
        looks.append(check(dog))
        return looks[-1]

    def slow(batch, mesh):
        calls.append(1)
        if len(calls) == 5:
            begun, deadline = len(looks), time.monotonic() + 600
            while True not in looks[begun:-3] and time.monotonic() < deadline:
                time.sleep(0.02)
            stalled.extend(looks[begun:])
        return place(batch, mesh)

    monkeypatch.setattr(feed.sharding, "place", slow)
    monkeypatch.setattr(watchdog.Watchdog, "check", look)
    train.run(config, tmp_path / "stalled", limits=watchdog.Limits(2, 1))
    said = capfd.readouterr().err
    assert stalled.count(True) == 1 and len(stalled) > 3
    assert "stacks of all threads" in said and "in slow" in said
    assert "went on" in said and list(runs.series(tmp_path / "stalled")) == list(range(1, 9))

"""Commands side by side: on cores of their own, stopped together, failures at the end, as many as memory allows."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import jobs, shares
from maeclip_jax.parallel.shares import Share

SAY = "import os, sys, time; print('step 1/1', sorted(os.sched_getaffinity(0)), os.environ.get('CHIP'), flush=True); "
GIB, TWO = jobs.GIB, (Share(), Share())


def job(tmp_path, name: str, code: str) -> jobs.Job:
    return jobs.Job(name, [sys.executable, "-c", code], tmp_path / f"{name}.txt")


def crew(todo, given=TWO):
    said = []
    return jobs.Jobs(todo, list(given), said.append), said


def test_each_has_its_own_cores_and_chip_and_a_file(tmp_path):
    core = sorted(os.sched_getaffinity(0))
    given = [Share((core[0],), {"CHIP": "a"}), Share((core[-1],), {"CHIP": "b"})]
    # Each ends only once the other has begun, which needs both at once.
    meet = SAY + "open({0!r}, 'w'); [time.sleep(.01) for _ in range(3000) if not os.path.exists({1!r})]"
    names = [str(tmp_path / n) for n in "xy"]
    todo = [job(tmp_path, n, meet.format(*pair)) for n, pair in zip("xy", (names, names[::-1]))]
    made, said = crew(todo, given)
    assert made.run() == [] and all(j.seconds < 25 for j in todo)
    lines = {j.name: j.output.read_text().splitlines()[-1] for j in todo}
    assert set(lines.values()) == {f"step 1/1 [{core[0]}] a", f"step 1/1 [{core[-1]}] b"}
    for name, line in lines.items():
        assert f"[{name}] {line}" in said and any(s.startswith(f"[{name}] run ") and f"{name}.txt" in s for s in said)
    assert sorted(os.sched_getaffinity(0)) == core


def test_a_failure_stops_no_other_and_is_named_at_the_end(tmp_path):
    bad = SAY + "print('error: diverged'); sys.exit(2)"
    todo = [job(tmp_path, "a", bad), job(tmp_path, "b", SAY), job(tmp_path, "c", "raise ValueError('x')")]
    made, said = crew(todo, [Share()])
    failed = made.run()
    assert [j.name for j in failed] == ["a", "c"] and todo[1].code == 0 and "[a] error: diverged" in said
    with pytest.raises(UserError, match=r"2 of 3 runs failed: a \(code 2: diverged\); c \(code 1: ValueError: x\)"):
        made.report(failed)


def test_a_mistake_before_the_first_step_stops_all(tmp_path):
    wait = "import time; print('step 1/9', flush=True); time.sleep(60)"
    begun = time.monotonic()
    mistake = "import sys, time; time.sleep(0.5); print('error: unknown setting'); sys.exit(2)"
    todo = [job(tmp_path, "a", wait), job(tmp_path, "b", mistake), job(tmp_path, "c", SAY)]
    made, _ = crew(todo)
    failed = made.run()
    assert time.monotonic() - begun < 30 and todo[2].code is None and todo[0].code == -signal.SIGTERM
    with pytest.raises(UserError, match=r"^b: unknown setting; 1 of 3 runs were not started"):
        made.report(failed)


CREW = """
import sys
from pathlib import Path
from maeclip_jax import cli
from maeclip_jax.parallel import jobs, shares
code = '''
import signal, sys, time
def save(*_):
    print("saved"); sys.exit(0)
signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, signal.SIG_IGN)
print("step 1/9", flush=True)
time.sleep(60)
'''
todo = [jobs.Job(n, [sys.executable, "-c", code], Path(sys.argv[1]) / f"{n}.txt") for n in "abc"]
sys.exit(cli.guarded(lambda: jobs.Jobs(todo, [shares.Share()] * 2).run() and None))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_lets_all_save_and_starts_no_more(tmp_path, number):
    process = subprocess.Popen([sys.executable, "-c", CREW, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        steps = 0
        while steps < 2:
            steps += "step 1/9" in process.stdout.readline()
        process.send_signal(number)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert [(tmp_path / f"{n}.txt").read_text().splitlines()[-1] for n in "ab"] == ["saved"] * 2
    assert not (tmp_path / "c.txt").exists()


def test_one_more_starts_only_where_memory_is_enough(tmp_path, monkeypatch):
    """3.5 GiB are free, of which a run that has not trained yet may take 3: the second waits for its end."""
    monkeypatch.setattr(shares, "free_memory", lambda: 3.5 * GIB)
    times = {}
    todo = [job(tmp_path, n, "import time; time.sleep(0.7)") for n in "ab"]
    made, said = crew(todo)
    train = made._train

    def timed(one, share):
        begun = time.monotonic()
        train(one, share)
        times[one.name] = (begun, time.monotonic())

    made._train = timed
    assert made.run() == []
    first, second = sorted(times.values())
    assert second[0] >= first[1]
    assert any("1 of 2 runs at a time: 3.5 GiB are free" in s and "3.0 GiB (guessed)" in s for s in said)


def test_what_one_has_taken_is_what_the_next_needs(monkeypatch):
    made, said = crew([], [Share()] * 4)
    monkeypatch.setattr(shares, "free_memory", lambda: 2.5 * GIB)
    monkeypatch.setattr(shares, "memory", lambda pid: (1.0 * GIB, 1.0 * GIB))
    running = jobs.Job("a", [], None, process=subprocess.Popen(["sleep", "0"]), started=True)
    running.process.wait()
    made._under_way.append(running)
    assert not made._fits()
    made._most = 1.0 * GIB
    assert made._fits()  # 2.5 - 0.15 that it may still take are more than 1.15
    made._under_way *= 3
    monkeypatch.setattr(shares, "free_memory", lambda: 1.5 * GIB)
    assert not made._fits() and len(said) == 1


def test_low_memory_stops_the_youngest_which_goes_on_later(tmp_path, monkeypatch):
    low, trained = threading.Event(), tmp_path / "trained"
    monkeypatch.setattr(jobs, "LOOK", 0.05)
    monkeypatch.setattr(shares, "free_memory", lambda: (0.1 if low.is_set() else 100) * GIB)
    wait = f"[time.sleep(.01) for _ in range(3000) if not os.path.exists({str(trained)!r})]"
    todo = [job(tmp_path, n, SAY + wait) for n in "ab"]
    made, said = crew(todo)
    say = said.append

    def heard(text):
        say(text)
        if sum("step 1/1" in s for s in said) == 2:
            low.set()
        if "stopped: less than" in text:
            low.clear()
            trained.touch()

    made._say = heard
    assert made.run() == [] and [j.code for j in todo] == [0, 0]
    assert sum("stopped: less than 0.75 GiB" in s for s in said) == 1
    texts = [j.output.read_text() for j in todo]
    assert sorted(text.count("\nstep 1/1") for text in texts) == [1, 2]

"""The roll call names who is missing or runs something else; who is lost or fails ends the others, with words."""

import concurrent.futures
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import rollcall
from maeclip_jax.parallel.pod import Pod
from maeclip_jax.parallel.rollcall import LOST, Line, roll_call
from maeclip_jax.workdir import read_metrics
from tests import runs, torture
from tests.golden import ROOT

RUNS = {"--mode": "train", "config.optim.lr": 0.001, "commit": "abc", "jax": "0.10.2"}


def call_roll(cards: dict, *, processes: int, timeout: float = 1.5, numbers=None) -> dict:
    """{key: the Line, or the text of the UserError} of processes that show `cards`, each in a thread."""
    address = f"localhost:{runs.free_port()}"

    def one(key):
        try:
            pod = Pod(address, processes, (numbers or {}).get(key, key), {2: "w-2"})
            return roll_call(pod, {"host": f"host-{key}", "runs": cards[key]}, timeout)
        except UserError as e:
            return str(e)

    with concurrent.futures.ThreadPoolExecutor(len(cards)) as pool:
        return dict(zip(cards, pool.map(one, cards)))


def test_all_there_and_alike():
    lines = call_roll({0: RUNS, 1: RUNS, 2: RUNS}, processes=3, timeout=600)
    assert all(isinstance(line, Line) for line in lines.values()), lines


def test_who_is_missing_is_named_on_all_that_came(monkeypatch):
    now, read = [0.0], rollcall._Peer.read

    def heard(peer):
        messages = read(peer)
        if any("runs" in message for message in messages):  # process 1 has come: now the time is up
            now[0] = 2.0
        return messages

    monkeypatch.setattr(rollcall._Peer, "read", heard)
    monkeypatch.setattr(rollcall, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    said = call_roll({0: RUNS, 1: RUNS}, processes=4)
    assert (
        said[0]
        == said[1]
        == (
            "2 of 4 processes came within 1.5 s (--join_timeout); missing: process 2 (w-2), process 3; here: process 0 "
            "(host-0), process 1 (host-1)"
        )
    )


def test_a_missing_process_0_is_named():
    (said,) = call_roll({1: RUNS}, processes=2).values()
    assert re.fullmatch(
        r"process 1 \(host-1\) of 2 did not reach process 0 at localhost:\d+ within 1.5 s \(--join_timeout\): "
        r"Connection refused; missing: process 0",
        said,
    )


def test_what_differs_is_named_on_all():
    other = RUNS | {"config.optim.lr": 0.002, "commit": "def", "extra": "1"}
    said = call_roll({0: RUNS, 1: RUNS, 2: other}, processes=3, timeout=600)
    assert (
        said[0]
        == said[1]
        == said[2]
        == (
            "hosts do not run the same as process 0 (host-0): process 2 (host-2): config.optim.lr is 0.002, not 0.001; "
            "commit is def, not abc; extra is 1, not absent"
        )
    )


def test_a_number_given_twice_and_a_wrong_count():
    said = call_roll({0: RUNS, 1: RUNS, "again": RUNS}, processes=3, timeout=600, numbers={"again": 1})
    assert "this run has 3 processes, but process 1 (host-" in said[0] and "is there twice" in said[0]
    assert said[0] == said[1] == said["again"]
    address = f"localhost:{runs.free_port()}"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        card = {"host": "h", "runs": {}}
        both = [pool.submit(roll_call, Pod(address, n, i), card, 600) for i, n in enumerate((2, 4))]
    for one in both:
        with pytest.raises(UserError, match="this run has 2 processes, but h says it is process 1 of 4"):
            one.result()


def test_a_port_that_is_taken_and_an_address_that_is_none():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"process 0 cannot listen on port {port} \(Address already in use\): "):
            roll_call(Pod(f"localhost:{port}", 2, 0), {"host": "h", "runs": {}}, 1)
    for address in ("localhost", "localhost:http", ":1", "localhost:99999"):
        with pytest.raises(
            UserError, match=rf"--coordinator='{address}' is not an address; valid: host:port of process 0"
        ):
            Pod(address, 2, 0)


def test_strangers_at_the_port_are_ignored():
    port = runs.free_port()
    card = {"host": "h", "runs": {}}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        zero = pool.submit(roll_call, Pod(f"localhost:{port}", 2, 0), card, 600)
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"[1, 2]\n", b""):
            while True:
                try:
                    with socket.create_connection(("localhost", port)) as stranger:
                        stranger.sendall(noise)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
        one = pool.submit(roll_call, Pod(f"localhost:{port}", 2, 1), card, 600)
        assert isinstance(zero.result(), Line) and isinstance(one.result(), Line)


# As processes of the line alone.

MEMBER = """
import sys, time
from maeclip_jax.parallel import joining, rollcall
from maeclip_jax.parallel.pod import Pod
number, port, does = int(sys.argv[1]), sys.argv[2], sys.argv[3]
joining._line = rollcall.roll_call(Pod(f"localhost:{port}", 3, number), {"host": f"h{number}", "runs": {}}, 600)
print("ready", flush=True)
if does == "fail":
    joining.failed(2, "no such\\nfile")
    joining.leave(2)
if does == "done":
    joining._line.end(0)
    sys.exit(0)
sys.stdin.read()
"""


def members(*does: str) -> list[subprocess.Popen]:
    """Three processes on a line, all ready; each does what is said, or waits."""
    port = str(runs.free_port())
    started = [
        subprocess.Popen([sys.executable, "-c", MEMBER, str(i), port, d], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i, d in enumerate(does)
    ]  # fmt: skip
    assert [p.stdout.readline() for p in started] == ["ready\n"] * 3
    return started


@pytest.mark.parametrize("victim", (0, 2))
def test_a_killed_process_ends_the_others_at_once(victim):
    three = members("wait", "wait", "wait")
    three[victim].kill()
    others = [p for i, p in enumerate(three) if i != victim]
    assert [p.wait(600) for p in others] == [LOST, LOST]
    for p in others:
        assert p.stderr.read() == (
            f"error: process {victim} (h{victim}) is lost: its connection ended; the same command continues the run\n"
        )


@pytest.mark.parametrize("bad", (0, 1))
def test_one_that_fails_ends_the_others_with_its_code_and_words(bad):
    three = members(*("fail" if i == bad else "wait" for i in range(3)))
    assert [p.wait(600) for p in three] == [2, 2, 2]
    for i, p in enumerate(three):
        assert i == bad or p.stderr.read() == f"error: process {bad} (h{bad}) ended with code 2: no such file\n"


def test_an_end_that_comes_with_the_go_is_heard():
    with socket.create_server(("localhost", 0)) as zero:
        port = str(zero.getsockname()[1])
        one = subprocess.Popen([sys.executable, "-c", MEMBER, "1", port, "wait"], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        connection, _ = zero.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b'{"go": "process 0 (h0)"}\n{"end": 2, "text": "no such file"}\n')
            assert one.wait(600) == 2
    assert one.stderr.read() == "error: no such file\n"


def test_one_that_is_done_is_not_lost():
    three = members("wait", "done", "wait")
    assert three[1].wait(600) == 0
    time.sleep(1)
    assert [p.poll() for p in three] == [None, 0, None]
    for p in three:
        p.kill()


# As runs.


def said(workdir, i: int) -> str:
    return runs.text(workdir.with_name(f"{workdir.name}.{i}.txt"))


def test_a_run_with_another_config_on_one_host_is_refused(tmp_path):
    workdir = tmp_path / "run"
    good, other = runs.together(workdir, "steps=2,evals=false", "--join_timeout=600")
    other.kill()
    other.wait()
    other = torture.start([*other.args, "--config.optim.lr=0.5"], tmp_path / "other.txt")
    assert runs.wait([good, other]) == [2, 2], said(workdir, 0)
    for text in (said(workdir, 0), runs.text(tmp_path / "other.txt")):
        (line,) = [x for x in text.splitlines() if x.startswith("error: ")]
        assert re.search(r"as process 0 \(\S+\): process 1 \(\S+\): config.optim.lr is 0.5, not 0\.\d+$", line), line


def test_a_run_whose_other_host_never_comes_ends_in_time(tmp_path):
    for present, absent in ((0, 1), (1, 0)):
        workdir = tmp_path / f"run{present}"
        processes = runs.together(workdir, "steps=2,evals=false", "--join_timeout=3")
        processes[absent].kill()
        assert processes[present].wait(600) == 2, said(workdir, present)
        assert f"missing: process {absent}" in said(workdir, present)
        assert "within 3 s (--join_timeout)" in said(workdir, present)


@pytest.mark.parametrize("victim", (0, 1))
def test_a_run_that_loses_a_host_ends_within_a_minute(victim, tmp_path):
    workdir = tmp_path / "run"
    processes = runs.together(workdir, "objective=clip,steps=3000,save=3000,evals=false")
    other = processes[1 - victim]
    try:
        while len(read_metrics(workdir)) < 3 and other.poll() is None:
            time.sleep(0.05)
        processes[victim].send_signal(signal.SIGKILL)
        code = other.wait(600)
    finally:
        runs.wait(processes)
    text = said(workdir, 1 - victim)
    # Where process 0 is lost, jax's own client aborts at the same moment; the words are there in any case.
    assert code == LOST or (victim == 0 and code == -signal.SIGABRT), text
    assert re.search(rf"error: process {victim} \(.*\) is lost: its connection ended; the same command ", text), text

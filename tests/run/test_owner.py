"""One owner of a workdir: a second training is refused, and a run whose owner is gone continues at once."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from maeclip_jax import remote as remote_files
from maeclip_jax.errors import UserError
from maeclip_jax.run import owner
from maeclip_jax.workdir import OWNER
from tests import runs, torture


def card(path, **changes):
    path.write_text(json.dumps(owner._own_card() | {"token": "theirs"} | changes))


def test_file_comes_and_goes(tmp_path):
    with owner.Owner(epath.Path(tmp_path)) as mine:
        mine.check()
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / OWNER).exists()


def test_second_is_refused_in_one_line_that_names_host_process_and_age(tmp_path):
    with owner.Owner(epath.Path(tmp_path)):
        refused = pytest.raises(UserError, match=rf"is being trained by process {os.getpid()} on \S+, for \d+s; stop")
        with refused, owner.Owner(epath.Path(tmp_path)):
            pass
        assert (tmp_path / OWNER).exists()  # the refused one has not taken the first one's file away


def test_process_that_is_gone_is_replaced_without_waiting(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    started = owner._started(ended.pid)
    ended.wait()
    card(tmp_path / OWNER, pid=ended.pid, started=started)
    with owner.Owner(epath.Path(tmp_path), silence=float("inf")):  # waiting would never end
        pass


def test_number_of_a_process_used_again_is_another_process(tmp_path):
    card(tmp_path / OWNER, started="1")  # this process has the number, and began later
    with owner.Owner(epath.Path(tmp_path), silence=float("inf")):
        pass


def test_owner_elsewhere_without_a_sign_is_replaced(tmp_path, capsys):
    card(tmp_path / OWNER, space="another host", host="tpu-7")
    with owner.Owner(epath.Path(tmp_path), silence=1.0) as mine:
        mine.check()
    out = capsys.readouterr().out
    assert f"belongs to process {os.getpid()} on tpu-7: waiting up to 1 s" in out and "taking over" in out


def test_owner_elsewhere_with_signs_stays(tmp_path, monkeypatch):
    card(tmp_path / OWNER, space="another host", host="tpu-7", beat=3)
    read, looks = owner._read, []

    def lively(path):
        looks.append(1)
        return read(path) | {"beat": len(looks)}

    monkeypatch.setattr(owner, "_read", lively)
    refused = pytest.raises(UserError, match=r"is being trained by process \d+ on tpu-7")
    with refused, owner.Owner(epath.Path(tmp_path), silence=600.0):
        pass


def test_process_that_was_replaced_while_it_slept_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "BEAT", 0.05)
    with owner.Owner(epath.Path(tmp_path)) as mine:
        card(tmp_path / OWNER, pid=7, host="tpu-7")
        end = time.monotonic() + 600
        while not mine._lost and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(UserError, match="taken over by process 7 on tpu-7"):
            mine.check()
    assert json.loads((tmp_path / OWNER).read_text())["host"] == "tpu-7"  # it is theirs, and stays


def test_a_workdir_in_a_bucket_has_one_owner(remote, monkeypatch, capsys):
    where, they = epath.Path(remote), remote_files.write
    with owner.Owner(where):
        refused = pytest.raises(
            UserError, match=rf"^{remote} is being trained by process {os.getpid()} on \S+, for \d+s"
        )
        with refused, owner.Owner(where):
            pass
    assert remote_files.read(where / OWNER) is None
    theirs = owner._own_card() | {"token": "theirs", "space": "another host", "host": "tpu-7"}
    they(where / OWNER, json.dumps(theirs).encode())
    with owner.Owner(where, silence=1.0) as mine:
        mine.check()
    assert "on tpu-7: waiting up to 1 s for a sign of it" in capsys.readouterr().out
    monkeypatch.setattr(owner, "REMOTE_BEAT", 0.05)
    with owner.Owner(where) as mine:
        they(where / OWNER, json.dumps(theirs).encode())
        end = time.monotonic() + 600
        while not mine._lost and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(UserError, match=rf"^{remote} was taken over by process {os.getpid()} on tpu-7 while"):
            mine.check()
    assert json.loads(remote_files.read(where / OWNER))["token"] == "theirs"


def test_two_trainings_and_a_kill(tmp_path):
    """Of two trainings in one workdir one goes on; after SIGKILL the next one continues at once."""
    workdir, rest = tmp_path / "run", "evals=false,examples=false,objective=clip"
    long = torture.command(workdir, f"{runs.TINY}:steps=100000,save=100000,{rest}")
    first = torture.start(long, tmp_path / "1.txt")
    try:
        end = time.monotonic() + 600
        while not (workdir / "metrics.jsonl").exists() and first.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert torture.finish(long, tmp_path / "2.txt") == 2
        lines = runs.without_alarms((tmp_path / "2.txt").read_text())
        assert f"is being trained by process {first.pid} on " in lines[-1] and "Traceback" not in "".join(lines)
        assert [x for x in lines if x.startswith("error: ")] == [lines[-1]] and first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert (workdir / OWNER).exists()
    short = torture.command(workdir, f"{runs.TINY}:steps=2,save=2,{rest}")
    assert torture.finish(short, tmp_path / "3.txt") == 0, (tmp_path / "3.txt").read_text()
    assert "waiting up to" not in (tmp_path / "3.txt").read_text()
    assert not (workdir / OWNER).exists()

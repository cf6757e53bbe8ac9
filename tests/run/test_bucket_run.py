"""A run whose data and workdir are in a bucket, while the bucket is not as it should be: the numbers of a local run."""

import itertools
import os
import re
import shutil
import signal
import threading
import time

import jax
import pytest

from maeclip_jax import main, remote
from maeclip_jax.errors.storage import Away
from maeclip_jax.prepare.builders import scenes
from maeclip_jax.remote import outbox
from maeclip_jax.run import attempts, checkpoint, log, train
from maeclip_jax.workdir import read_metrics
from tests import runs, stored, torture

ARG = "steps=60,save=10"


@pytest.fixture(scope="module")
def folder():
    """A folder with the data set scenes/mu."""
    where = runs.folder() / "bucket-run"
    scenes.build("mu", where / "data")
    return where


@pytest.fixture(scope="module")
def reference(folder):
    """An undisturbed run in a folder, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAECLIP_DATA_DIR", str(folder / "data"))
        train.run(stored.get_config(ARG), folder / "reference", devices=jax.devices()[:1])
    return folder / "reference"


@pytest.fixture
def away(bucket, fresh_bucket, remote, folder, monkeypatch):
    """Where a run of this test goes, in a bucket that also holds its data. What a run waits for is short."""
    bucket.upload(folder / "data", "run-data")
    monkeypatch.setenv("MAECLIP_DATA_DIR", "gs://name/run-data")
    monkeypatch.setattr(attempts, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(attempts, "AGAIN_SECONDS", 0.5)
    monkeypatch.setattr(outbox, "AGAIN_SECONDS", 0.3)
    monkeypatch.setattr("maeclip_jax.remote.SAID_AFTER", 0.5)
    monkeypatch.setattr(log, "_REMOTE_SECONDS", 0.2)
    return remote


def _at(monkeypatch, steps: dict) -> None:
    """Calls what `steps` name when the row of that step is said; a row takes a moment, so that there is time for it."""
    before = log.Log.scalars

    def scalars(self, step, values):
        before(self, step, values)
        if step in steps:
            steps.pop(step)()
        time.sleep(0.02)

    monkeypatch.setattr(log.Log, "scalars", scalars)


def _fetch(where: str, to) -> None:
    remote.system(where).get(f"{where}/", f"{to}/", recursive=True)


def _same(where: str, reference, tmp_path) -> None:
    """Rows, examples and the last parameters are those of a local run, bit by bit. A checkpoint may be late, by up to
    one whole distance: it is the next one then."""
    run = tmp_path / "run"
    _fetch(where, run)
    regular, saved = torture.steps(reference), torture.steps(run)
    for step in set(saved) - set(regular):
        shutil.rmtree(run / "checkpoints" / str(step))
    missing = set(regular) - set(saved)
    after = dict(itertools.pairwise(regular))
    assert all(any(step < s <= after[step] for s in saved) for step in missing)  # KeyError: the last one
    reference = shutil.copytree(reference, tmp_path / "reference")
    for step in missing:
        shutil.rmtree(reference / "checkpoints" / str(step))
    torture.compare(run, reference)


def test_a_dozen_faults_change_nothing(away, reference, fresh_bucket, monkeypatch, tmp_path, caplog):
    fault = fresh_bucket.fault
    faults = {
        3: lambda: fault("metrics", "put", "429", times=2),
        6: lambda: fault("tensorboard", "put", "403", times=3),  # kept, said, written when it can be
        9: lambda: fault("checkpoints", "*", "503", times=6),
        15: lambda: fault("scenes-train", "media", "reset", times=3),
        18: lambda: fault("", "*", "reset", times=4),
        22: lambda: fault("scenes-train", "media", "short", times=2),
        25: lambda: fault("metrics", "put", "slow", times=1, seconds=3.0),
        29: lambda: fresh_bucket.away(4.0),
        38: fresh_bucket.restart,
        43: lambda: fault("costs", "put", "401", times=4),
        49: lambda: fault("checkpoints/50/state", "put", "503", times=3),
    }
    _at(monkeypatch, faults)
    train.run(stored.get_config(ARG), away, devices=jax.devices()[:1])
    assert not faults
    _same(away, reference, tmp_path)
    said = [r.getMessage() for r in caplog.records if r.name == "maeclip_jax"]
    (kept,) = [x for x in said if "it is kept and tried again, and the run goes on" in x]
    assert re.match(r"cannot write gs://name/\S+/tensorboard/events\S+: access is denied \(403\); check", kept)
    assert any(re.match(r"waiting for gs://name/\S+: \d+ s \(", x) for x in said), said


def test_a_bucket_away_for_long_ends_the_run_with_one_line(away, folder, fresh_bucket, monkeypatch):
    """The steps go on while it is away, until a checkpoint could not be saved for long. Its data are here."""
    monkeypatch.setenv("MAECLIP_DATA_DIR", str(folder / "data"))
    monkeypatch.setattr(attempts, "GIVE_UP_SECONDS", 2.0)
    monkeypatch.setattr("maeclip_jax.remote.RUN_SECONDS", 2.0)
    monkeypatch.setattr("maeclip_jax.remote.START_SECONDS", 2.0)
    monkeypatch.setattr(outbox, "LAST_SECONDS", 0.5)

    def leave():
        while 10 not in _whole(away):
            time.sleep(0.1)
        fresh_bucket.away(120.0)

    _at(monkeypatch, {12: leave})
    with pytest.raises(Away) as raised:
        train.run(stored.get_config("steps=2000,save=10"), away, devices=jax.devices()[:1])
    assert re.fullmatch(
        rf"cannot write {away}/checkpoints/\d+: no answer for 1 s; check the network, the credentials, and that bucket "
        r"'name' can be reached from here; step 10 is saved; run the same command when it can be reached",
        str(raised.value),
    ), raised.value


def test_stopping_while_the_bucket_is_slow(away, fresh_bucket, monkeypatch, capsys):
    def stop():
        fresh_bucket.latency(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    _at(monkeypatch, {14: stop})
    train.run(stored.get_config(ARG), away, devices=jax.devices()[:1])
    said = capsys.readouterr().out
    (step,) = re.findall(r"stopping was asked for: step (\d+) is saved", said)
    assert f"stopping was asked for: saving step {step}; until it is saved, the same command continues from" in said
    assert re.search(r"step \d+ is saved: \d+ requests, \d+ kB written", said)
    assert checkpoint.locate(away).name == step and max(r["step"] for r in read_metrics(away)) == int(step)


def test_stopping_while_the_bucket_is_away_ends_in_time(away, fresh_bucket, tmp_path):
    """A process whose storage has gone leaves by itself, says what is saved, and that the same command goes on."""
    said = tmp_path / "said.txt"
    said.touch()
    process = torture.start(torture.command(away, "tests/stored.py:steps=100000,save=10", "--grace=3"), said)
    while process.poll() is None and not _whole(away):
        time.sleep(0.1)
    fresh_bucket.away(60)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75, runs.text(said)
    last = said.read_text().splitlines()[-1]
    assert re.fullmatch(
        r"error: the run has not stopped within 3 s of being asked to \(--grace\); step \d+ is saved; the same command "
        r"goes on from there",
        last,
    ), last
    fresh_bucket.clear()
    assert int(last.split("step ")[1].split()[0]) == max(_whole(away))


def _command(where: str, output, moment, *more: str) -> int:
    """Starts a run as a command, waits for a moment of it, and kills it; its exit code."""
    process = torture.start(torture.command(where, f"tests/stored.py:{ARG}", *more), output)
    while process.poll() is None and moment and not moment():
        time.sleep(0.005)
    if moment:
        process.kill()
    return process.wait(300)


def _whole(where: str) -> set[int]:
    """Complete checkpoints."""
    found = remote.sizes(f"{where}/checkpoints")
    return {int(n.split("/")[0]) for n in found if n.count("/") == 1 and n.endswith(checkpoint.COMMITTED)}


def test_killed_twice_and_the_server_restarted(away, reference, fresh_bucket, tmp_path):
    said = tmp_path / "said.txt"
    said.touch()
    _command(away, said, lambda: _whole(away))
    fresh_bucket.restart()
    first = max(_whole(away))

    def saving() -> bool:
        """While a later step is being saved."""
        there = {int(n.split("/")[0]) for n in remote.sizes(f"{away}/checkpoints")}
        return bool(there) and max(there) > max(_whole(away), default=0) >= first

    _command(away, said, saving)
    second = max(_whole(away))
    half = {int(n) for n in remote.names(f"{away}/checkpoints")} - _whole(away)
    assert _command(away, said, None) == 0, runs.text(said)
    going_on = [int(n) for n in re.findall(r"continuing from step (\d+) of 60", said.read_text())]
    assert going_on == [first, second] and half and min(half) > second
    _same(away, reference, tmp_path)


def _several(where: str, reference, tmp_path, processes: int, *more: str) -> list[str]:
    """A run of several processes, which has the examples of a run of one; what each process said."""
    pod = [f"--coordinator=localhost:{runs.free_port()}", f"--processes={processes}"]
    args = torture.command(where, "tests/stored.py:steps=6,save=3", *pod, *more)
    outputs = [tmp_path / f"{i}.txt" for i in range(processes)]
    started = [torture.start([*args, f"--process={i}"], outputs[i]) for i in range(processes)]
    assert set(runs.wait(started)) == {0}, [runs.text(o) for o in outputs]
    _fetch(where, tmp_path / "fetched")
    assert torture.examples(tmp_path / "fetched") == torture.examples(reference)[:6]
    return [runs.text(o) for o in outputs]


def test_one_of_two_processes_that_cannot_write_its_part(away, reference, fresh_bucket, tmp_path):
    """Both give that checkpoint up, and go on to the next."""
    fresh_bucket.fault("/checkpoints/3/state/ocdbt.process_1", "put", "403", times=1)
    first, other = _several(away, reference, tmp_path, 2, "--config.mesh.fsdp=2")  # each process writes its own half
    assert _whole(away) == {6}
    assert "checkpoints/3: access is denied (403)" in first
    assert "the run goes on, and tries again for 15 minutes" in first
    assert "answers again" in first and "tries again" not in other


@pytest.mark.long
def test_four_processes_see_the_same_examples(away, reference, tmp_path):
    _several(away, reference, tmp_path, 4)
    assert _whole(away) == {3, 6}


def test_a_damaged_checkpoint_is_one_line(away, monkeypatch):
    train.run(stored.get_config("steps=2,save=2"), away, devices=jax.devices()[:1])
    remote.delete(f"{away}/checkpoints/2/state/manifest.ocdbt")
    with pytest.raises(
        remote.UserError, match=rf"^checkpoint {away}/checkpoints/2 cannot be read \(.*\); move it away"
    ):
        train.run(stored.get_config("steps=4,save=2"), away, devices=jax.devices()[:1])


def test_requests_before_the_first_step(away, fresh_bucket, monkeypatch):
    """At most 60 of a start anew and of one that goes on, with what they read of small data and an empty cache."""
    counts = []

    def count():
        found = fresh_bucket.counts()
        signs = found.by_object[f"{away.partition('name/')[2]}/owner.json"].requests - 3  # as long as compiling takes
        counts.append((found.requests - signs, found.by_object))

    for steps in (1, 2):
        fresh_bucket.reset()
        _at(monkeypatch, {steps: count})
        args = [f"--config=tests/stored.py:steps={steps},save=1", f"--workdir={away}", f"--cache={away}/xla"]
        assert main.main(args) == 0
    assert len(counts) == 2 and all(requests <= 60 for requests, _ in counts), counts


def test_threads_of_the_outbox_end(away):
    before = threading.active_count()
    with outbox.opened():
        outbox.write(f"{away}/x.txt", b"1")
        assert remote.read(f"{away}/x.txt") == b"1"
    assert remote.read(f"{away}/x.txt") == b"1" and not remote.pending and threading.active_count() <= before + 1

"""Runs on storage that fails: one line that says what is saved, and the same command continues to the same end."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from maeclip_jax import report
from maeclip_jax.errors import UserError
from maeclip_jax.errors.storage import StorageError
from maeclip_jax.run import log, train
from tests import runs, torture

CONFIG = f"{runs.TINY}:objective=clip,steps=12,save=3,evals=False"


@pytest.fixture(scope="module")
def reference():
    """An undisturbed run, as a command on one device."""
    folder = runs.folder() / "full-disk"
    folder.mkdir()
    code = torture.finish(torture.command(folder / "reference", CONFIG), folder / "reference.txt")
    assert code == 0, runs.text(folder / "reference.txt")
    return folder / "reference"


@pytest.fixture
def disk(tmp_path):
    """(a folder that is a small file system of its own, how to give it a size); skips where none can be made."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: str, how: str = "") -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", str(folder)]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"no small file system can be made here: {found.stderr.strip()}")

    try:
        sized("64k")
    except FileNotFoundError:
        pytest.skip("no small file system can be made here: there is no mount")
    yield folder, lambda size: sized(size, "remount,")
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


# A program whose files may have so many bytes each.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
os.execv(sys.argv[1], sys.argv[1:])
"""


def command(workdir: Path, *before: str) -> tuple[int, list[str]]:
    """(exit code, lines of stderr) of the run; `before`: a program that starts it."""
    args = [*before, *torture.command(workdir, CONFIG)]
    done = subprocess.run(args, cwd=torture.ROOT, capture_output=True, text=True, timeout=600)
    return done.returncode, runs.without_alarms(done.stderr)


@pytest.mark.parametrize(
    ("size", "what", "safe"),
    [
        ("24k", r"(metrics\.jsonl|costs\.json|config\.json|names\.json|examples/\S+)", "no step is saved yet"),
        pytest.param(
            "600k", r"(checkpoints/3|costs\.json|metrics\.jsonl)", "no step is saved yet", marks=pytest.mark.long
        ),
        ("1200k", r"(checkpoints/\d+|costs\.json|metrics\.jsonl|examples/\S+)", r"step \d is saved"),
    ],
)
def test_a_full_disk(size, what, safe, reference, disk):
    folder, sized = disk
    sized(size)
    code, said = command(folder / "run")
    errors = [line for line in said if not line.startswith("WARNING: log sink 'tensorboard' failed: ")]
    assert code == 2 and len(errors) == 1, "\n".join(said)
    have = re.fullmatch(
        rf"error: cannot write {folder}/run/{what}: No space left on device "
        rf"\((\S+ \w+ are needed, )?\S+ \w+ are free\); {safe}; run the same command when there is room",
        errors[0],
    )
    assert have, errors[0]
    assert not list((folder / "run" / "checkpoints").glob("*tmp*"))  # what it wrote of the last one is given back
    sized("64m")
    code, said = command(folder / "run")
    assert (code, said) == (0, [])
    torture.compare(folder / "run", reference)


def test_a_file_system_that_takes_no_large_files(reference, tmp_path):
    """The same without a file system of its own, so that every machine has a test of it."""
    code, said = command(tmp_path / "run", sys.executable, "-c", LIMITED.format(60_000))
    assert code == 2 and len(said) == 1, "\n".join(said)
    assert re.fullmatch(
        rf"error: cannot write {tmp_path}/run/checkpoints/3: File too large \(\S+ kB are needed\); "
        "no step is saved yet; run the same command when there is room",
        said[0],
    ), said[0]
    assert command(tmp_path / "run") == (0, [])
    torture.compare(tmp_path / "run", reference)


def test_a_workdir_that_becomes_read_only(disk):
    """Once step 3 is saved, its folder of checkpoints is covered by a mount that cannot be written to."""
    folder, sized = disk
    sized("64m")
    there = folder / "run" / "checkpoints"
    code = f"""
import subprocess, sys
from maeclip_jax import cli, main
from maeclip_jax.run import saving
save = saving.Checkpoints.save
def then(self, step, *rest):
    if step == 6:
        self.wait()
        for how in (["--bind", {str(there)!r}], ["-o", "remount,ro,bind"]):
            subprocess.run(["mount", *how, {str(there)!r}], check=True)
    return save(self, step, *rest)
saving.Checkpoints.save = then
cli.leave(lambda: main.main(sys.argv[1:]))
"""
    program = [sys.executable, "-c", code, *torture.command(folder / "run", CONFIG)[3:]]
    done = subprocess.run(program, cwd=torture.ROOT, capture_output=True, text=True, timeout=600)
    subprocess.run(["umount", "--lazy", str(there)], check=True)
    (said,) = runs.without_alarms(done.stderr)
    assert done.returncode == 2
    assert said == (
        f"error: cannot write {there}/6: Read-only file system; step 3 is saved; run the same command when it can be "
        "written"
    )


def test_a_compilation_cache_on_a_full_disk_is_said_once_and_mends(disk, tmp_path):
    """Half an entry would stay there for ever, be warned of at every start and keep its program from being kept."""
    folder, sized = disk

    def cached(run: str) -> list[str]:
        args = torture.command(tmp_path / run, CONFIG, f"--cache={folder}")
        small = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        done = subprocess.run(args, cwd=torture.ROOT, capture_output=True, text=True, timeout=600, env=small)
        assert done.returncode == 0, done.stderr
        return runs.without_alarms(done.stderr)

    sized("8k")
    assert cached("full") == [
        f"WARNING: compiled programs cannot be kept in {folder}: OSError: [Errno 28] No space left on device; they are "
        "compiled anew, and the run goes on"
    ]
    sized("64m")
    assert cached("room") == [] and cached("kept") == []
    assert all(entry.stat().st_size for entry in folder.glob("*-cache")) and list(folder.glob("jit_update-*-cache"))


def test_a_terminal_that_is_a_file_on_a_full_disk(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        args = torture.command(tmp_path / "run", CONFIG)
        done = subprocess.run(args, cwd=torture.ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=600)
    assert (done.returncode, runs.without_alarms(done.stderr)) == (0, [])
    assert torture.steps(tmp_path / "run")[-1] == 12


class Disk:
    """Files that tensorboardX opens, on a disk that is full while `room` is False."""

    room = True

    def open(self, path):
        disk, kept = self, open(path, "wb", buffering=0)  # noqa: SIM115 (lives as long as its writer)

        class File:
            def write(self, data):
                if not disk.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return kept.write(data)

            def flush(self):
                kept.flush()

            def close(self):
                kept.close()

        return File()


def test_tensorboard_on_a_full_disk_does_not_block_and_goes_on_when_there_is_room(tmp_path, monkeypatch, caplog):
    """More rows than tensorboardX's queue has places; they were written by a thread that died of the first."""
    from tensorboardX import record_writer

    from tests.run.test_log import events

    disk = Disk()
    monkeypatch.setattr(record_writer, "open_file", disk.open)
    written = log.Log(tmp_path, 0)
    written.scalars(1, {"train/loss": 1.0})
    disk.room = False
    for step in range(2, 50):
        written.scalars(step, {"train/loss": 1.0})
    disk.room = True
    for step in range(50, 60):
        written.scalars(step, {"train/loss": 2.0})
    written.close()
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["log sink 'tensorboard' failed"]
    assert [step for step, _, _ in events(tmp_path / "tensorboard")] == [1, *range(50, 60)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 59


EVALUATOR = """
from maeclip_jax.evals import Metric, Picture
import numpy as np

class Breaks:
    def __init__(self, context, *, data):
        self.calls = 0

    def run(self, params):
        self.calls += 1
        if self.calls == 2:
            raise KeyError("no such\\nclass")
        yield Metric("level", 1.0, "dB", "lower")
        yield Picture("sketch", np.full((4, 4, 3), 9, np.uint8))
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "my_breaks.py").write_text(EVALUATOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = runs.config("objective=clip,steps=4,save=4")
    data = made.evals.val.data.to_dict()
    made.evals = {"breaks": dict(type="my_breaks:Breaks", every="1 steps", data=data)}
    return made


def test_an_evaluator_that_breaks_does_not_end_the_training(config, tmp_path, caplog):
    with pytest.raises(UserError, match=r"^evaluation breaks failed, as its warning says$"):
        train.run(config, tmp_path / "run", devices=jax.devices()[:1])
    said = [r.getMessage() for r in caplog.records if "failed" in r.getMessage()]
    assert said == [r"evaluation breaks failed: KeyError: 'no such\nclass'"]
    assert torture.steps(tmp_path / "run") == [4] and len(runs.series(tmp_path / "run")) == 4
    found = {s: "breaks/level" in runs.result(tmp_path / "run", s)["metrics"] for s in (1, 2, 3, 4)}
    assert found == {1: True, 2: False, 3: True, 4: True}


def test_pictures_and_results_that_cannot_be_written_do_not_end_the_training(config, tmp_path, caplog):
    config.evals.breaks.every = "4 steps"
    (tmp_path / "run" / "evals").mkdir(parents=True)
    (tmp_path / "run" / "evals" / "4").write_text("in the way of a folder")
    with pytest.raises(UserError, match=r"^evaluation breaks failed, as its warning says$"):
        train.run(config, tmp_path / "run", devices=jax.devices()[:1])
    assert f"evaluation breaks failed: cannot write {tmp_path}/run/evals/4/breaks-sketch" in caplog.text
    assert torture.steps(tmp_path / "run") == [4]
    (tmp_path / "run" / "evals" / "4").unlink()
    train.run(config, tmp_path / "run", devices=jax.devices()[:1])  # makes up for it
    assert "breaks/level" in runs.result(tmp_path / "run", 4)["metrics"]


def test_results_that_cannot_be_written_are_named_at_the_end(config, tmp_path, monkeypatch, caplog):
    from maeclip_jax.run import evaluate

    def refuses(path, text):
        raise StorageError(f"cannot write {path}: Disk quota exceeded", room=True)

    monkeypatch.setattr(evaluate, "write_text", refuses)
    config.evals.breaks.every = "4 steps"
    with pytest.raises(UserError, match=r"^evaluation breaks failed, as its warning says$"):
        train.run(config, tmp_path / "run", devices=jax.devices()[:1])
    assert re.search(r"evaluation breaks failed: cannot write \S+/evals/4.json: Disk quota exceeded", caplog.text)
    assert torture.steps(tmp_path / "run") == [4]
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["breaks/level"] == 1.0  # it was measured, and is in the row


def test_a_report_and_an_export_that_cannot_be_written(reference, tmp_path):
    from maeclip_jax.run import export

    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"^cannot write {tmp_path}/file: File exists$"):
        report.compare([reference], tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("the old model")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(StorageError, match=rf"^cannot write {tmp_path}/out: File too large \(\S+ kB are needed\)$"):
            export.write(reference, "hf-vision", tmp_path / "out", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert (tmp_path / "out" / "model.safetensors").read_text() == "the old model"

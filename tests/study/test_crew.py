"""The processes of a study: what breaks beside a run ends no run in silence."""

import sys

import pytest

from maeclip_jax.parallel import jobs, shares
from maeclip_jax.study import crew, plan, results
from tests.study import made_up

AXES = dict(sizes=(1000, 4000), diversities=(1.0,), seeds=2, pools=("max",), match=("examples",))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """(folder, plan) of a study without results, whose worker is a program that answers that each run is done."""
    folder = made_up.folder(tmp_path / "study", monkeypatch, **AXES)
    for path in (folder / results.RUNS).iterdir():
        path.unlink()
    worker = tmp_path / "worker"
    worker.write_text(f"#!{sys.executable}\nimport sys\nfor line in sys.stdin: print({crew.DONE!r}, flush=True)\n")
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    return folder, plan.read(folder)


def test_a_page_that_cannot_be_written_ends_no_run(study, tmp_path, capfd):
    def show():
        raise ValueError("no page of these")

    folder, made = study
    crew.work(folder, tmp_path, made, given=[shares.Share()] * 2, show=show)
    said = capfd.readouterr()
    assert "8 of 8 runs" in said.out and said.out.count("cannot be written") == 8
    assert "ValueError: no page of these" in said.err


def test_what_breaks_in_a_thread_is_raised(study, tmp_path, monkeypatch):
    folder, made = study
    monkeypatch.setattr(sys, "executable", "false")  # each process dies at once

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write", full)
    with pytest.raises(OSError, match="No space left"):
        crew.work(folder, tmp_path, made, given=[shares.Share()])


def test_a_list_of_commands_ends_with_what_broke(tmp_path):
    (tmp_path / "file").write_text("")
    todo = [jobs.Job(f"j{i}", ["true"], tmp_path / "file" / f"{i}.txt") for i in range(2)]
    with pytest.raises(OSError):
        jobs.Jobs(todo, [shares.Share()]).run()
    assert [job.code for job in todo] == [None, None]

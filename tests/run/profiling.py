"""Tests of profiles that are taken in their own process; `test_profile` runs this file in one."""

import jax
import pytest
from jax.profiler import ProfileData

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.run import train
from tests import runs

ARG = "objective=clip,steps=6,save=2,batch=8,evals=false"


def traced(workdir, session: str, process: str = "process-0", processes: int = 1) -> list[int]:
    """The numbers of the steps in a session's trace of one of so many processes."""
    folder = workdir / "profile" / "plugins" / "profile" / session
    kinds = ("trace.json.gz", "xplane.pb")
    assert {p.name for p in folder.iterdir()} == {f"process-{i}.{k}" for i in range(processes) for k in kinds}
    planes = ProfileData.from_file(str(folder / f"{process}.xplane.pb")).planes
    every = [e for p in planes for line in p.lines for e in line.events]
    assert not [e.name for e in every if e.name.startswith("$")]  # calls of Python: their tracer can end the process
    events = [e for e in every if e.name == "train"]
    return sorted({dict(e.stats)["step_num"] for e in events if "step_num" in dict(e.stats)})


def run(workdir, span, **settings) -> int:
    config = runs.config(ARG, **settings)
    return guarded(lambda: train.run(config, workdir, devices=jax.devices()[:1], profile=span))


def test_the_steps_that_were_asked_for_are_in_the_trace(tmp_path, capsys):
    assert run(tmp_path, (3, 4)) == 0
    assert traced(tmp_path, "steps-3-4") == [3, 4]
    assert f"profile of steps 3 to 4: {tmp_path}/profile/plugins/profile/steps-3-4" in capsys.readouterr().out
    assert len(runs.series(tmp_path)) == 6


def test_a_run_that_ends_or_is_resumed_in_the_range_closes_its_trace(tmp_path):
    assert run(tmp_path, (2, 5), total="3 steps") == 0
    assert traced(tmp_path, "steps-2-3") == [2, 3]
    assert run(tmp_path, (2, 5)) == 0
    assert traced(tmp_path, "steps-4-5") == [4, 5]
    assert run(tmp_path, (2, 5), total="7 steps") == 0  # behind it
    assert len(list((tmp_path / "profile" / "plugins" / "profile").iterdir())) == 2


def test_a_run_that_fails_in_the_range_closes_its_trace(tmp_path, monkeypatch):
    def fails(self, *_):
        raise UserError("enough")

    monkeypatch.setattr(train._Run, "_guard", fails)
    assert run(tmp_path, (1, 5)) == 2
    assert traced(tmp_path, "steps-1-2") == [1, 2]  # step 2 is dispatched before the values of step 1 are looked at
    with pytest.raises(RuntimeError, match="No profile started"):
        jax.profiler.stop_trace()


def test_a_trace_that_cannot_be_taken_or_written_does_not_end_the_run(tmp_path, caplog):
    jax.profiler.start_trace(str(tmp_path / "mine"))
    try:
        assert run(tmp_path / "a", (2, 3)) == 0
    finally:
        jax.profiler.stop_trace()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "profile").write_text("in the way")
    assert run(tmp_path / "b", (2, 3)) == 0
    said = [r.getMessage() for r in caplog.records if "profile" in r.getMessage()]
    assert [s.partition(": ")[0] for s in said] == ["no profile of steps 2 to 2", "no profile of steps 2 to 3"]
    assert all(len(runs.series(tmp_path / w)) == 6 for w in "ab")

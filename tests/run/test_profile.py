"""Profiles of some steps: which, where, and whether they read like the model."""

import re

import jax
import pytest
from jax.profiler import ProfileData

from maeclip_jax import main
from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.run import profile, step, train
from tests import runs

ARG = "objective=clip,steps=6,save=2,batch=8,evals=false"


def traced(workdir, session: str, process: str = "process-0", processes: int = 1) -> list[int]:
    """The numbers of the steps in a session's trace of one of so many processes."""
    folder = workdir / "profile" / "plugins" / "profile" / session
    kinds = ("trace.json.gz", "xplane.pb")
    assert {p.name for p in folder.iterdir()} == {f"process-{i}.{k}" for i in range(processes) for k in kinds}
    planes = ProfileData.from_file(str(folder / f"{process}.xplane.pb")).planes
    events = [e for p in planes for line in p.lines for e in line.events if e.name == "train"]
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


def test_every_process_writes_into_one_session(tmp_path):
    workdir = tmp_path / "two"
    codes = runs.wait(runs.together(workdir, ARG, "--profile=2:3", devices=1))
    assert codes == [0, 0], runs.text(tmp_path / "two.0.txt")
    assert [traced(workdir, "steps-2-3", f"process-{i}", 2) for i in (0, 1)] == [[2, 3], [2, 3]]


@pytest.mark.parametrize("text", ["5", "5:", ":5", "0:3", "5:3", "a:b", "1:2:3", "-1:3", "1.5:3"])
def test_what_names_no_steps_is_one_line(text):
    with pytest.raises(UserError, match=r"--profile=.* does not name steps; valid: START:STOP with 1 <= START <= STOP"):
        profile.parse(text)


def test_the_command_says_what_is_wrong_with_a_range(tmp_path, capsys):
    command = [f"--config=tests/tiny.py:{ARG}", f"--workdir={tmp_path}"]
    assert main.main([*command, "--profile=3"]) == 2
    assert capsys.readouterr().err.startswith("error: --profile=3 does not name steps; valid: START:STOP")
    assert main.main([*command, "--profile=3:4", "--mode=eval"]) == 2
    assert capsys.readouterr().err == "error: --profile is of training steps; valid with --mode=train only\n"


def test_a_range_is_read_and_must_begin_within_the_run(tmp_path, capsys):
    assert profile.parse("") is None and profile.parse("10:12") == (10, 12)
    assert run(tmp_path, (7, 9)) == 2
    assert "error: --profile=7:9 begins after the last step, 6" in capsys.readouterr().err


def test_a_profile_reads_like_the_model():
    prog = step.build(runs.config("objective=mae_clip,batch=8"), epoch=40, devices=jax.devices()[:1])
    with jax.set_mesh(prog.mesh):
        text = prog.step.lower(prog.abstract, prog.inputs).as_text(debug_info=True)
    paths = set(re.findall(r'"(jit\(update\)/[^"]*)"', text))
    for name in (
        "image/trunk", "text/trunk", "decoder/trunk", "image_head", "text_head", "contrast_loss",
        "image_reconstruction_loss", "text_reconstruction_loss", "optimizer",
    ):  # fmt: skip
        assert any(f"/{name}/" in f"{path}/" for path in paths), name
    backward = [p for p in paths if "transpose(" in p]
    assert any("/contrast_loss/" in p for p in backward) and not any("/optimizer/" in p for p in backward)

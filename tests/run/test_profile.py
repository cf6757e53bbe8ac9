"""Profiles of some steps: which, where, and whether they read like the model."""

import os
import re
import subprocess
import sys

import jax
import pytest

from maeclip_jax import main
from maeclip_jax.errors import UserError
from maeclip_jax.run import profile, step
from tests import runs
from tests.golden import ROOT
from tests.run.profiling import ARG, run, traced


def test_profiles_that_are_taken_in_their_own_process():
    """The profiler ends a process in which the TPU compiler has worked, as other tests of this worker may have."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/run/profiling.py",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout[-3000:]


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

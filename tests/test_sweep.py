"""Sweeps: every shipped file names runs whose configs load, folders differ, and mistakes are named."""

import glob
import subprocess
import sys

import pytest

from maeclip_jax import main, sweep
from maeclip_jax.errors import UserError

FILES = sorted(glob.glob("experiments/sweeps/*.py"))


@pytest.mark.parametrize("path", FILES)
def test_runs_of_shipped_sweeps_load(path):
    runs = sweep.runs_of(path)
    assert len({sweep.label(*r) for r in runs}) == len(runs) >= 4
    for experiment, argument, settings in runs:
        flags = [f"--config.{k}={v}" for k, v in settings.items()]
        values = main.parse([f"--config=experiments/{experiment}.py:{argument}", "--workdir=x", *flags])
        for name, value in settings.items():
            node = values.config
            for part in name.split("."):
                node = node[part]
            assert node == value


def test_list_runs_nothing_and_mistakes_are_named(capsys):
    sweep.run(["pooling_demo", "--list", "--config.seed=3"])
    said = capsys.readouterr().out
    assert said.count("--config.seed=3") == 4 and "mae_clip-scale-demo-pool-max" in said
    with pytest.raises(UserError, match=r"unknown sweep 'poolin'.*pooling_demo"):
        sweep.run(["poolin"])
    with pytest.raises(UserError, match="unknown flag '--rot'"):
        sweep.run(["pooling_demo", "--rot=x"])


def test_two_runs_one_table_and_again_costs_nothing(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text('RUNS = (("clip", "runlocal,pool=gap"), ("mae", "runlocal", {"seed": 1}))\n')
    command = [sys.executable, "-m", "maeclip_jax.sweep", str(file), f"--root={tmp_path}", "--platform=cpu"]
    first = subprocess.run([*command, "--config.total=2 steps"], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    table = (tmp_path / "tiny" / "report.md").read_text()
    assert "clip" in table and "mae" in table and "gap" in table
    assert (tmp_path / "tiny" / "index.html").exists()
    again = subprocess.run([*command, "--config.total=2 steps"], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.count("all 2 steps are done") == 2

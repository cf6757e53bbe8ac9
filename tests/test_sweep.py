"""Sweeps: every shipped file names runs whose configs load, folders differ, and mistakes are named."""

import glob
import shlex
import subprocess
import sys

import pytest

from maeclip_jax import main, sweep
from maeclip_jax.errors import UserError
from maeclip_jax.preflight import command as preflight
from maeclip_jax.study import command as study

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
    with pytest.raises(UserError, match="--index=4: sweep pooling_demo has 4 runs; valid: 0 to 3"):
        sweep.run(["pooling_demo", "--index=4"])
    with pytest.raises(UserError, match="--jobs=0; valid: 1 or more"):
        sweep.run(["pooling_demo", "--jobs=0"])
    with pytest.raises(UserError, match=r"--on=x goes with --launch; valid there: slurm, sky, jobset"):
        sweep.run(["pooling_demo", "--on=x"])


def test_a_mistake_in_one_config_is_found_before_any_is_trained(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text('RUNS = (("clip", "runlocal"), ("mae", "runlocal,colour=red"))\n')
    with pytest.raises(UserError, match="colour"):
        sweep.run([str(file), f"--root={tmp_path}"])
    assert not (tmp_path / "bad").exists()


def test_each_run_has_a_folder_of_its_own(tmp_path, capsys):
    file = tmp_path / "signs.py"
    runs = '("clip", "runlocal", {"mesh.replica": -1}), ("clip", "runlocal", {"mesh.replica": 1}), ("clip", "runlocal")'
    file.write_text(f"RUNS = ({runs})\n")
    sweep.run([str(file), "--list"])
    folders = [line.split("\t")[1].rpartition("/")[2] for line in capsys.readouterr().out.splitlines()]
    assert folders == ["clip-runlocal-mesh.replica--1", "clip-runlocal-mesh.replica-1", "clip-runlocal"]
    file.write_text(f'RUNS = ({runs}, ("clip", "runlocal", {{"mesh.replica": "+1"}}))\n')
    with pytest.raises(
        UserError, match=r"sweep signs: runs 1 and 3 would both be in clip-runlocal-mesh.replica-1; valid"
    ):
        sweep.run([str(file), "--list"])


def test_list_gives_what_index_runs(tmp_path, capsys, monkeypatch):
    sweep.run(["weights_demo", f"--root={tmp_path}", "--list", "--config.seed=3"])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [int(row[0]) for row in rows] == list(range(len(rows))) and len({row[1] for row in rows}) == len(rows)
    ran = []
    monkeypatch.setattr(sweep.os, "execv", lambda path, command: ran.append(command) or sys.exit(0))
    for i, (_, workdir, command) in enumerate(rows):
        with pytest.raises(SystemExit):
            sweep.run(["weights_demo", f"--root={tmp_path}", f"--index={i}", "--config.seed=3"])
        assert ran[-1] == [sys.executable, *shlex.split(command)[1:]] and f"--workdir={workdir}" in ran[-1]


def test_two_runs_side_by_side_one_table_and_again_costs_nothing(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text('RUNS = (("clip", "runlocal,pool=gap"), ("mae", "runlocal", {"seed": 1}))\n')
    command = [sys.executable, "-m", "maeclip_jax.sweep", str(file), f"--root={tmp_path}", "--platform=cpu", "--jobs=2"]
    first = subprocess.run([*command, "--config.total=2 steps"], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    table = (tmp_path / "tiny" / "report.md").read_text()
    assert "clip" in table and "mae" in table and "gap" in table
    assert (tmp_path / "tiny" / "index.html").exists()
    outputs = sorted((tmp_path / "tiny").glob("*.txt"))
    assert [p.stem for p in outputs] == ["clip-runlocal-pool-gap", "mae-runlocal-seed-1"]
    for path in outputs:
        assert "step 2/2" in path.read_text() and f"[{path.stem}] step 2/2" in first.stdout
    again = subprocess.run([*command, "--config.total=2 steps"], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.count("all 2 steps are done") == 2


@pytest.mark.parametrize(
    "run, words",
    [
        (sweep.run, ["pooling_demo"]), (sweep.run, []), (study.run, ["--sizes=1k", "--dry_run"]),
        (preflight.run, ["--all"]), (main.parse, ["--config=experiments/clip.py", "--workdir=runs/a"]),
    ],
)  # fmt: skip
def test_outside_the_repository_each_command_says_where_to_run_it(run, words, tmp_path, monkeypatch):
    """Names of the shipped experiments and sweeps are of the folder one is in; none is not a list to choose from."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run in the repository"):
        run(words)

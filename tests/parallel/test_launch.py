"""Files for schedulers: each starts every run of a sweep, with the names and workdirs of --list."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from maeclip_jax import sweep
from maeclip_jax.errors import UserError
from maeclip_jax.parallel import launch

yaml = pytest.importorskip("yaml")
BUCKET = "--root=gs://bucket/runs"


def rendered(capsys, *argv: str) -> str:
    sweep.run(["pooling_demo", "--config.seed=3", *argv])
    return capsys.readouterr().out


@pytest.fixture
def workdirs(capsys):
    """Of the four runs, by index."""
    return [line.split("\t")[1] for line in rendered(capsys, BUCKET, "--list").splitlines()]


def index_of(command: list[str], index: str) -> None:
    """The command is one of a sweep, and runs the one with this index."""
    assert command[:3] == ["-m", "maeclip_jax.sweep", "pooling_demo"] and command[-1] == f"--index={index}"
    assert {"--config.seed=3"} < set(command)


def test_slurm_is_an_array_job_that_saves_and_queues_again(capsys, tmp_path, workdirs):
    text = rendered(capsys, "--launch=slurm", "--on=gpu:2", f"--root={tmp_path}")
    assert "#SBATCH --array=0-3\n" in text and "#SBATCH --gres=gpu:2\n" in text
    for i, workdir in enumerate(workdirs):
        assert f"# {i}: {Path(workdir).name}\n" in text
    script = tmp_path / "job.sh"
    script.write_text(text)
    check = Path(sys.executable).parent / "shellcheck"
    assert subprocess.run([check, script], capture_output=True, check=False).stdout == b""
    # srun and scontrol that say what they are asked; a run that ends as the test wants.
    for name, does in (("srun", 'echo "srun $*"; exit ${CODE:-0}'), ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "7"}

    def job(code: int) -> tuple[int, list[str]]:
        done = subprocess.run(["bash", script], env=env | {"CODE": str(code)}, cwd=tmp_path, capture_output=True,
                              text=True, check=False)  # fmt: skip
        return done.returncode, done.stdout.splitlines()

    code, said = job(0)
    assert code == 0 and len(said) == 1
    index_of(shlex.split(said[0])[3:], "2")
    assert job(2)[0] == 2
    assert job(75)[1][1:] == ["scontrol requeue 7_2"]


def test_slurm_s_signal_reaches_the_run_before_it_is_queued_again(capsys, tmp_path):
    text = rendered(capsys, "--launch=slurm")
    (tmp_path / "job.sh").write_text(text)
    run = "trap 'sleep 0.2; echo saved; exit 0' TERM; echo begun; while :; do sleep 0.05; done"
    for name, does in (("srun", run), ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "7"}
    job = subprocess.Popen(["bash", tmp_path / "job.sh"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout.readline() == "begun\n"
        job.terminate()
        said = job.communicate(timeout=30)[0]
    finally:
        job.kill()
    assert said.splitlines() == ["saved", "scontrol requeue 7_1"] and job.returncode == 0


@pytest.mark.parametrize("on, extra", [("tpu-v6e-8", "tpu"), ("H100:8", "gpu")])
def test_sky_is_a_managed_job_of_one_run(capsys, workdirs, on, extra, monkeypatch):
    monkeypatch.setenv("MAECLIP_DATA_DIR", "gs://bucket/data")
    text = rendered(capsys, BUCKET, "--launch=sky", f"--on={on}")
    found = yaml.safe_load(text)
    assert found["resources"]["accelerators"] == on and found["resources"]["use_spot"]
    assert found["envs"] == {"INDEX": "0", "MAECLIP_DATA_DIR": "gs://bucket/data"} and f".[{extra}]" in found["setup"]
    index_of(shlex.split(found["run"])[1:], "$INDEX")
    assert re.search(r"for i in 0 1 2 3; do sky jobs launch .*--env INDEX=\$i", text)
    assert all(f"# {i}: {w.rpartition('/')[2]}\n" in text for i, w in enumerate(workdirs))


def test_a_jobset_a_run_on_its_slice(capsys, workdirs, monkeypatch):
    monkeypatch.setenv("MAECLIP_DATA_DIR", "/here")
    text = rendered(capsys, BUCKET, "--launch=jobset", "--on=v6e-16")
    found = list(yaml.safe_load_all(text))
    assert [d["metadata"]["name"] for d in found] == [f"pooling-demo-{i}" for i in range(4)]
    for i, document in enumerate(found):
        job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
        pod = job["template"]["spec"]
        assert job["parallelism"] == job["completions"] == 4
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
        assert (
            pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4} and "env" not in pod["containers"][0]
        )
        index_of(pod["containers"][0]["args"], str(i))
        assert f"# {i}: {workdirs[i].rpartition('/')[2]}\n" in text


def test_mistakes_are_named():
    for argv, said in (
        (["--launch=kube", BUCKET], r"unknown --launch 'kube'.*slurm"),
        (["--launch=sky"], r"--root=runs is a folder of this machine.*--root=gs://bucket/runs"),
        (["--launch=jobset", "--on=v6e-3", BUCKET], r"--on=v6e-3 is not a slice of v5e, v6e; valid: .* N of 1, 4, 8"),
        (["--launch=jobset", "--on=H100:8", BUCKET], "--on=H100:8 is not a slice"),
    ):
        with pytest.raises(UserError, match=said):
            sweep.run(["pooling_demo", *argv])


def test_every_template_has_a_word():
    assert sorted(launch.KINDS.values()) == sorted(p.name for p in Path(launch.FOLDER).iterdir())

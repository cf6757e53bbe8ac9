"""Two processes of four devices each, joined on localhost: the run of eight devices in one process, in every number."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from maeclip_jax.workdir import read_items, read_metrics
from tests import runs, torture
from tests.golden import ROOT

ARG = "steps=12,save=6"
SPLIT = ("--config.mesh.replica=1", "--config.mesh.fsdp=8")  # over both processes; one process has eight replicas


@pytest.fixture(scope="module")
def stopped():
    """A run split over two processes, one of which got SIGTERM after step 3: (workdir, exit codes)."""
    workdir = runs.folder() / "two"
    processes = runs.together(workdir, ARG, *SPLIT)
    while len(read_metrics(workdir)) < 3 and processes[0].poll() is None:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    return workdir, runs.wait(processes)


def said(workdir):
    return "".join(runs.text(workdir.with_name(f"{workdir.name}.{i}.txt")) for i in (0, 1))


def assert_same_run(workdir, reference, *, steps):
    """Examples equal; losses and evaluations to float tolerance."""
    have, want = runs.series(workdir), runs.series(reference)
    assert list(have) == list(range(1, steps + 1))
    np.testing.assert_allclose([*have.values()], [want[s] for s in have], rtol=2e-5)
    for name, value in runs.metrics(reference, steps).items():
        if name.startswith("val/") and "top1" not in name:
            np.testing.assert_allclose(runs.metrics(workdir, steps)[name], value, rtol=1e-4, err_msg=name)


def test_sigterm_to_one_of_two_saves_the_same_step_on_both(stopped):
    workdir, codes = stopped
    assert codes == [0, 0], said(workdir)
    (step,) = torture.steps(workdir)[-1:]
    assert 3 <= step < 12 and f"step {step} is saved" in said(workdir)
    traces = {p.name: len(p.read_text().splitlines()) for p in (workdir / "examples").iterdir()}
    assert traces == {"00000000-of-2-0.jsonl": step, "00000000-of-2-1.jsonl": step}
    assert "error" not in said(workdir).lower() and "Traceback" not in said(workdir)


def test_continued_on_two_processes_it_is_the_run_of_one(stopped, tmp_path):
    workdir = runs.copy(stopped[0], tmp_path / "run")
    assert runs.wait(runs.together(workdir, ARG, *SPLIT)) == [0, 0], said(workdir)
    reference = runs.whole(8, ARG)
    assert torture.examples(workdir) == torture.examples(reference)
    assert_same_run(workdir, reference, steps=12)
    assert [r["step"] for r in torture.metrics(workdir)] == list(range(1, 13))


def test_continued_on_one_process_it_is_the_same(stopped, tmp_path):
    workdir = runs.copy(stopped[0], tmp_path / "run")
    (step,) = torture.steps(workdir)[-1:]
    shutil.rmtree(workdir / "examples")
    reference = runs.whole(8, ARG)
    runs.run(workdir, ARG, devices=8)
    (trace,) = (workdir / "examples").iterdir()
    again = [json.loads(line)["keys"] for line in trace.read_text().splitlines()]
    assert again == torture.examples(reference)[step:]
    assert_same_run(workdir, reference, steps=12)


def test_evaluated_alone_on_two_processes_the_numbers_are_the_same(tmp_path):
    reference = runs.whole(8, ARG)
    given = [f"--config.resume={reference}", "--mode=eval"]
    assert runs.wait(runs.together(tmp_path / "alone", ARG, *given)) == [0, 0], said(tmp_path / "alone")
    have, want = runs.result(tmp_path / "alone", 12), runs.result(reference, 12)
    assert have["metrics"].keys() == want["metrics"].keys()
    for name, value in want["metrics"].items():
        np.testing.assert_allclose(have["metrics"][name], value, rtol=1e-4, err_msg=name)
    assert have["details"]["val/rows"] == want["details"]["val/rows"]
    mine, theirs = read_items(tmp_path / "alone", 12), read_items(reference, 12)
    assert mine.keys() == theirs.keys() and "reconstruction/masked_mse" in mine
    for name, items in theirs.items():
        assert list(mine[name].key) == list(items.key), name
        np.testing.assert_allclose(mine[name].value, items.value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_one_process_that_fails_alone_ends_the_other_with_its_words(tmp_path):
    """The same command on both; only process 1 misses the module of the objective, in the folder it runs in."""
    port = runs.free_port()
    command = torture.command(
        tmp_path / "run", f"{ROOT / runs.TINY}:steps=12,save=6,evals=false", "--config.objective=mine:Mine",
        f"--coordinator=localhost:{port}", "--processes=2", devices=4,
    )  # fmt: skip
    processes = []
    for i in (0, 1):
        folder = tmp_path / f"host{i}"
        folder.mkdir()
        if i == 0:
            own = "from maeclip_jax.objectives.mae_clip import MaeClip\n\n\nclass Mine(MaeClip): ...\n"
            (folder / "mine.py").write_text(own)
        with (tmp_path / f"run.{i}.txt").open("w") as f:
            processes.append(
                subprocess.Popen([*command, f"--process={i}"], cwd=folder, stdout=f, stderr=subprocess.STDOUT,
                                 env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"})
            )  # fmt: skip
    assert runs.wait(processes) == [2, 2], said(tmp_path / "run")
    why = "objective 'mine:Mine': cannot import 'mine'"
    assert f"error: {why}" in runs.text(tmp_path / "run.1.txt")
    text = runs.text(tmp_path / "run.0.txt")
    assert re.search(rf"error: process 1 \(\S+\) ended with code 2: {why}", text), text


SLOW_TO_COMPILE = """
import sys, time
from maeclip_jax import cli, main
from maeclip_jax.run import microbatch
compiled = microbatch.compiled

def late(*args):
    made = compiled(*args)
    time.sleep(34)
    return made

microbatch.compiled = late
cli.leave(lambda: main.main(sys.argv[1:]))
"""


def test_a_process_that_compiles_later_is_waited_for(tmp_path):
    """Devices of two processes give up on each other after 30 s, if a program runs on one of them alone."""
    workdir, pod = tmp_path / "run", [f"--coordinator=localhost:{runs.free_port()}", "--processes=2"]
    command = torture.command(workdir, f"{runs.TINY}:objective=clip,steps=2,evals=false", *pod, devices=2)
    first, late = ([*command, f"--process={i}"] for i in (0, 1))
    late[1:3] = ["-c", SLOW_TO_COMPILE]
    processes = [torture.start(args, tmp_path / f"run.{i}.txt") for i, args in enumerate((first, late))]
    assert runs.wait(processes) == [0, 0], said(workdir)
    assert [row["step"] for row in read_metrics(workdir)] == [1, 2]

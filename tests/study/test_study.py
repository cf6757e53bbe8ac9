"""The smallest study from end to end: planned, killed, continued, reported; its result is read again as it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from maeclip_jax.study import command, page

WORDS = ["--sizes=20,40", "--arms=clip,flip", "--pool=max", "--seeds=2", "--match=examples", "--examples=32",
         "--runlocal", "--evals=zero_shot_seen", "--cpu_devices=1", "--config.batch_size=8"]  # fmt: skip


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def start(folder, *more):
    words = [sys.executable, "-m", "maeclip_jax.study", *WORDS, f"--out={folder}/out", f"--runs={folder}/runs", *more]
    with open(folder / "said.txt", "w") as said:
        return subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)


def text(folder):
    return (folder / "said.txt").read_text()[-3000:]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that was killed after its first result, stopped in another run, and then went on to its end."""
    folder = tmp_path_factory.mktemp("study")
    results, process = folder / "out" / "runs", start(folder)
    while process.poll() is None and not list(results.glob("*.json")):
        time.sleep(0.2)
    assert process.poll() is None, text(folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in results.glob("*.json")}
    plan = (folder / "out" / "study.json").read_bytes()
    assert first, text(folder)
    process = start(folder)
    while process.poll() is None and not any("step" in p.read_text() for p in (folder / "runs").glob("*s1.log")):
        time.sleep(0.2)
    process.terminate()  # as a scheduler does; what is under way saves, and none has failed
    code = process.wait(120)
    assert code == 130 and "interrupted; the same command continues" in text(folder), f"{code}: {text(folder)}"
    assert not any("failed" in json.loads(p.read_text()) for p in results.glob("*.json"))
    process = start(folder, "--jobs=2")
    assert process.wait(500) == 0, text(folder)
    assert (folder / "out" / "study.json").read_bytes() == plan
    assert all(
        (p.stat().st_mtime_ns, p.read_bytes()) == first[p.name] for p in results.glob("*.json") if p.name in first
    )
    return folder / "out"


def test_a_killed_study_goes_on_and_is_reported_whole(done):
    numbers = json.loads((done / "analysis.json").read_text())
    assert numbers["runs"] == {"planned": 8, "there": 8, "missing": {}}
    assert [row["n"] for row in numbers["declared"]] == [4, 4] and all(row["interval"] for row in numbers["declared"])
    assert [(row["size"], row["unique pictures"]) for row in numbers["data"]] == [(20, 20), (40, 40)]
    rows = (done / "gains.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[1].startswith("flip,clip,examples,max,1.0,20,")
    kept = json.loads(next((done / "runs").glob("flip*")).read_text())
    assert kept["items"] and kept["step"] == 4 and kept["settings"]["total"] == "32 examples"


def test_the_results_alone_give_the_same_report(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "elsewhere")
    for name in ("analysis.json", "gains.csv"):
        (tmp_path / "elsewhere" / name).unlink()
    assert command.main(["--report", f"--out={tmp_path / 'elsewhere'}"]) == 0
    mine, theirs = files(tmp_path / "elsewhere"), files(done)
    for changed in (mine, theirs):
        changed.pop("index.html")  # names its folder
    assert mine == theirs


def test_what_does_not_belong_there_or_is_missing_is_said(done, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(done, folder)
    assert command.main([*WORDS, "--seeds=3", f"--out={folder}"]) == 2
    assert "holds another study: seeds 2 there and 3 here; a plan is never changed" in capsys.readouterr().err
    (lost,) = sorted((folder / "runs").glob("clip-n20*s1.json"))
    lost.write_text(json.dumps({"id": lost.stem, "failed": "the disk was full"}))
    page.write(folder)
    numbers = json.loads((folder / "analysis.json").read_text())
    assert numbers["runs"]["there"] == 7 and numbers["runs"]["missing"] == {lost.stem: "the disk was full"}
    assert [row["n"] for row in numbers["declared"]] == [3, 3]
    (cell,) = [row for row in numbers["levels"] if row["arm"] == "clip" and row["size"] == 20]
    assert (cell["planned"], cell["n"]) == (2, 1)
    shown = (folder / "index.html").read_text()
    assert "the disk was full" in shown and "1 of 2" in shown
    (folder / "runs" / "strange.json").write_text("{}")
    assert command.main(["--report", f"--out={folder}"]) == 2
    assert "holds results of another plan: strange" in capsys.readouterr().err
    assert command.main(["--report", f"--out={tmp_path}"]) == 2
    assert "it has no study.json" in capsys.readouterr().err


@pytest.mark.long
def test_an_outcome_that_runs_do_not_measure_ends_the_study_with_the_first(tmp_path):
    process = start(tmp_path, "--outcome=zero_shot_seen/top7")
    assert process.wait(500) == 2, text(tmp_path)
    last = text(tmp_path).splitlines()[-1]
    assert "has not measured --outcome=zero_shot_seen/top7; it has" in last and "zero_shot_seen/top1" in last
    assert not list((tmp_path / "out" / "runs").glob("*.json"))

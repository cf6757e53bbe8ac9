"""A run that was interrupted ends as one that was not: same bits, same examples, same rows, same evaluations."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from tests import runs, torture

CONFIG = f"{runs.TINY}:steps=24,save=3"


@pytest.fixture(scope="module")
def folder():
    return runs.folder() / "resume"


@pytest.fixture(scope="module")
def reference(folder):
    """An undisturbed run, as a command on one device."""
    folder.mkdir()
    code = torture.finish(torture.command(folder / "reference", CONFIG), folder / "reference.txt")
    assert code == 0, runs.text(folder / "reference.txt")
    return folder / "reference"


def test_killed_at_any_moment_the_end_is_bit_equal(reference, folder):
    """kill -9 in a row, an evaluation, a checkpoint, the start-up. The long form: python -m tests.torture."""
    said = torture.torture(folder, CONFIG, kills=4, seed=1, moments=("row", "evaluation", "checkpoint", "any time"))
    assert len(said) == 4


def test_sigterm_saves_that_step_and_exits_0(reference, folder):
    run, said = folder / "stopped", folder / "stopped.txt"
    process = torture.start(torture.command(run, CONFIG), said)
    while not torture.pulse("row", run) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 0, runs.text(said)
    (step,) = torture.steps(run)[-1:]
    assert f"stopping was asked for: step {step} is saved" in said.read_text()
    assert max(runs.series(run)) == step < 24
    assert torture.finish(torture.command(run, CONFIG), said) == 0, runs.text(said)
    assert f"continuing from step {step} of 24" in said.read_text()
    torture.compare(run, reference)


def test_evaluations_alone_are_made_up_for(reference, tmp_path):
    """A kill after the last checkpoint and before the last evaluations: a restart does those and nothing else."""
    run = runs.copy(reference, tmp_path / "run")
    result = json.loads((run / "evals" / "24.json").read_text())
    for name in [m for m in result["metrics"] if m.startswith("retrieval/")]:
        del result["metrics"][name]
    del result["seconds"]["retrieval"]
    (run / "evals" / "24.json").write_text(json.dumps(result))
    rows = (run / "metrics.jsonl").read_text().splitlines()
    last = {k: v for k, v in json.loads(rows[-1]).items() if not k.startswith(("retrieval/", "val/"))}
    (run / "metrics.jsonl").write_text("\n".join([*rows[:-1], json.dumps(last)]) + "\n")
    assert torture.finish(torture.command(run, CONFIG), tmp_path / "said.txt") == 0
    torture.compare(run, reference)
    said = (tmp_path / "said.txt").read_text()
    assert "all 24 steps are done" in said and "eval retrieval at step 24" in said and "eval val" not in said


def test_what_an_abandoned_future_left_behind_is_forgotten(reference, tmp_path):
    """Rows and evaluations of steps after the checkpoint that is there are made again, not believed."""
    run = runs.copy(reference, tmp_path / "run", step=21)
    path = run / "evals" / "24.json"
    path.write_text(path.read_text().replace('"val/loss": ', '"val/loss": 9'))
    (run / "checkpoints" / "24.orbax-checkpoint-tmp-1").mkdir()
    assert torture.finish(torture.command(run, CONFIG), tmp_path / "said.txt") == 0
    torture.compare(run, reference)
    assert not list((run / "checkpoints").glob("*tmp*"))


def test_every_epoch_has_every_record_once(reference):
    """24 batches of 16 out of 40 records: nine epochs, which end in the middle of batches."""
    keys = [key for step in torture.examples(reference) for key in step]
    epochs = [keys[i : i + 40] for i in range(0, len(keys) - 39, 40)]
    assert len(epochs) == 9 and all(len(set(e)) == 40 for e in epochs)
    assert len({tuple(e) for e in epochs}) == 9  # each in an order of its own


def test_continued_on_fewer_devices(tmp_path):
    """Eight devices, then four from step 6 on: the same examples; losses and evaluations to float tolerance.

    One device: test_checkpoint.py, with layers unrolled.
    """
    reference = runs.whole(8, "steps=12,save=6")
    run = runs.copy(reference, tmp_path / "run", step=6)
    shutil.rmtree(run / "examples")
    runs.run(run, "steps=12,save=6", 4)
    (trace,) = (run / "examples").iterdir()
    again = [json.loads(line)["keys"] for line in trace.read_text().splitlines()]
    assert again == torture.examples(reference)[6:]
    mine, other = runs.series(run), runs.series(reference)
    assert list(mine) == list(range(1, 13))
    np.testing.assert_allclose([*mine.values()], [*other.values()], rtol=2e-5)
    for name, value in runs.metrics(reference, 12).items():
        if name.startswith("val/") and "top1" not in name:
            np.testing.assert_allclose(runs.metrics(run, 12)[name], value, rtol=1e-4, err_msg=name)

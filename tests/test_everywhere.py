"""gs:// wherever a path is accepted: a run in a bucket is evaluated, loaded, reported and gone on from as any other."""

import functools

import numpy as np
import pytest
from etils import epath

import maeclip_jax as mc
from maeclip_jax import cli, interop, main, remote, report, sweep
from maeclip_jax.config import split
from maeclip_jax.errors import UserError
from maeclip_jax.params import flatten
from maeclip_jax.report import command
from maeclip_jax.workdir import read_config, read_metrics, read_results
from tests import runs
from tests.interop import foreign

CONFIG = "tests/tiny.py:objective=clip,steps=6,save=3"


@pytest.fixture(scope="module")
def local():
    """A run in a folder."""
    return runs.run(runs.folder() / "everywhere", CONFIG.partition(":")[2])


@pytest.fixture
def run(local, remote, fresh_bucket):
    """The same in the bucket."""
    fresh_bucket.upload(local, remote.removeprefix("gs://name/"))
    return remote


def _command(*argv: str) -> int:
    return main.main([*argv, "--cache="])


def test_a_run_is_evaluated_by_its_address_alone(run, capsys):
    remote.delete(f"{run}/evals/6.json")
    assert _command(f"--config={run}/config.json", "--mode=eval", f"--workdir={run}") == 0
    assert "eval retrieval at step 6" in capsys.readouterr().out
    (found,) = [r for r in read_results(run)[0] if r["step"] == 6]
    assert {n.partition("/")[0] for n in found["metrics"]} == {"val", "retrieval"}
    assert command.main(["--compare", run, run]) == 0  # by the items that were written there
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("retrieval/")]
    assert len(lines) == 11 and all(line.endswith("within noise") for line in lines)


def test_a_model_is_loaded_and_its_weights_go_through_the_bucket(run, local):
    model, here = mc.load(run), mc.load(local)
    assert model.step == 6 and mc.load(f"{run}/checkpoints/3").step == 3
    for path, value in flatten(here.params).items():
        assert np.array_equal(value, flatten(model.params)[path]), path
    made = f"{run}/hf"
    interop.save("hf-clip", *_large(), made, tokenizer=False)
    assert {"config.json", "model.safetensors"} <= set(remote.names(made))
    with pytest.raises(UserError, match=rf"'{made}' is there already and holds something"):
        interop.save("hf-clip", *_large(), made, tokenizer=False)
    back = interop.load("hf-clip", made)
    want = flatten(_large()[1])
    assert all(np.array_equal(x, want[p]) for p, x in flatten(back.params).items())
    with pytest.raises(UserError, match=rf"weights '{run}/none' are not there"):
        interop.load("hf-clip", f"{run}/none")


@functools.cache
def _large():
    """A model that transformers' CLIP can express, and its parameters."""
    loaded = interop.load("hf-clip", foreign.hf_clip(runs.folder() / "everywhere-hf")[0])
    return loaded.config, loaded.params


def test_reports_and_tables_go_where_they_are_told(run, capsys):
    assert command.main([run]) == 0
    assert command.main(["--tables", run, "--out", f"{run}/tables"]) == 0
    assert {"index.html"} <= set(remote.names(f"{run}/report")) & set(remote.names(f"{run}/tables"))
    capsys.readouterr()
    for unknown in (lambda: command.main(["foo://b/run"]), lambda: sweep_main("pooling_demo", "--root=foo://b/runs")):
        assert unknown() == 2
        assert "unknown scheme foo:// in 'foo://b/run" in capsys.readouterr().err
    report.compare([run], f"{run}/compared")
    assert "report.md" in remote.names(f"{run}/compared")


def sweep_main(*argv: str) -> int:
    return cli.guarded(lambda: sweep.run(argv))


def test_a_run_begins_with_another_and_one_goes_on_from_another(run, capsys):
    begun = [f"--config={CONFIG},evals=False", f"--config.init_from={run}", "--config.total=1 steps"]
    assert _command(*begun, f"--workdir={run}-more") == 0
    assert "parameters loaded; fresh: none" in capsys.readouterr().out
    going_on = [f"--config={run}/config.json", f"--config.resume={run}/checkpoints/3"]
    assert _command(*going_on, f"--workdir={run}-on") == 0
    said = capsys.readouterr().out
    assert f"{run}/checkpoints/3 was read with " in said and "continuing from step 3 of 6" in said
    assert {r["step"]: r["train/loss"] for r in read_metrics(f"{run}-on")} == {
        r["step"]: r["train/loss"] for r in read_metrics(run) if r["step"] > 3
    }
    assert read_config(epath.Path(f"{run}-on"))["resume"] == f"{run}/checkpoints/3"


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("experiments/clip.py:scale=demo", ("experiments/clip.py", "scale=demo")),
        ("experiments/clip.py", ("experiments/clip.py", "")),
        ("gs://b/run/config.json", ("gs://b/run/config.json", "")),
        ("gs://b/clip.py:a=1,b=x:y", ("gs://b/clip.py", "a=1,b=x:y")),
        (r"C:\runs\a.py:x=1", (r"C:\runs\a.py", "x=1")),
        ("c:/runs/config.json", ("c:/runs/config.json", "")),
        ("a.py:dir=gs://b/data", ("a.py", "dir=gs://b/data")),
    ],
)
def test_which_colon_begins_an_argument(source, parts):
    assert split(source) == parts


def test_metrics_of_a_bucket_are_read_as_of_a_folder(run, local):
    assert read_metrics(run) == read_metrics(local) and read_config(epath.Path(run)) == read_config(local)

"""An evaluator of a person's own module, with a unit of its own, in a run, in every table and in checkpoint.best."""

import json

import jax
import matplotlib.figure
import pytest

from maeclip_jax import report
from maeclip_jax.errors import UserError
from maeclip_jax.report import figures, page
from maeclip_jax.report import run as runs_of_report
from maeclip_jax.run import train
from tests import runs, torture

MODULE = """
from maeclip_jax.evals import Metric, Picture
import numpy as np

class Noise:
    def __init__(self, context, *, data, offset=30.0):
        self.context, self.offset, self.calls = context, offset, 0

    def run(self, params):
        self.calls += 1
        value = self.offset + abs(self.calls - 2)
        yield Metric("level", value, "dB", "lower", interval=(value - 1, value + 1), note="of 3 rows")
        yield Picture("sketch", np.full((4, 4, 3), 9, np.uint8))

class NoRun:
    def __init__(self, context): ...

class NoContext:
    def run(self, params): ...
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_noise.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def trained(workdir, **entry):
    config = runs.config("objective=clip,steps=4,save=1")
    data = config.evals.val.data.to_dict()
    config.evals = {"noise": dict(every="1 steps", data=data) | entry}
    config.checkpoint.update(keep_last=1, keep_best=1, best="noise/level", every="1 steps")
    train.run(config, workdir, devices=jax.devices()[:1])
    return workdir


def test_it_is_shown_with_its_unit_and_chooses_the_best_checkpoint(module, tmp_path):
    workdir = trained(tmp_path / "run", type="my_noise:Noise")
    assert torture.steps(workdir) == [2, 4]  # 30 dB at step 2 is the least
    written = json.loads((workdir / "evals" / "4.json").read_text())
    assert written["about"]["noise/level"] == {
        "unit": "dB", "better": "lower", "chance": None, "reference": None, "interval": [31.0, 33.0],
        "note": "of 3 rows", "n": None, "how": "",
    }  # fmt: skip
    for make, where in (
        (lambda out: report.write(workdir), "the page of the run"),
        (lambda out: report.compare([workdir], out), "the comparison"),
        (lambda out: report.collect([workdir], out), "the tables"),
    ):
        path = make(tmp_path / where)
        said = (path.parent / "report.md").read_text()
        assert "32 dB" in said and "(of 3 rows)" in said.replace("\\", ""), where
    view = page.view(runs_of_report.read(workdir))
    assert any("Noise" in title for title, _ in view["accuracies"]), [title for title, _ in view["accuracies"]]
    assert r"32 dB \[31, 33\]" in (tmp_path / "the comparison" / "report.md").read_text()
    drawn = dict(figures.accuracies(runs_of_report.read(workdir)))["Noise: level"]
    axes = matplotlib.figure.Figure().subplots()
    drawn(axes)
    assert axes.get_ylabel() == "dB" and list(axes.lines[0].get_ydata()) == [31, 30, 31, 32]
    assert list((workdir / "tensorboard").iterdir()) and (workdir / "evals/4/noise-sketch.png").exists()


@pytest.mark.parametrize(
    "entry, text",
    [
        (dict(type="my_noise:Nois"), "unknown evaluator of module 'my_noise': 'Nois' (did you mean 'Noise'?); valid: "),
        (dict(type="no_such_module:X"), "evaluator 'no_such_module:X': cannot import 'no_such_module' (ModuleNotFound"),
        (dict(type="my_noise:NoRun"), "evaluator 'my_noise:NoRun' has no run(params)"),
        (dict(type="my_noise:NoContext"), "evaluator 'my_noise:NoContext' does not take `context` first"),
        (dict(type="my_noise:Noise", offse=1.0), "unknown setting of evaluator 'my_noise:Noise' 'offse'"),
    ],
)
def test_mistakes_are_named_before_training(module, tmp_path, entry, text):
    with pytest.raises(UserError) as error:
        trained(tmp_path / "run", **entry)
    assert text in str(error.value) and not (tmp_path / "run" / "checkpoints" / "1").exists()

"""The guard of transfers finds what the loop must not do. test_runlocal.py trains every experiment under it."""

import pytest

from maeclip_jax.parallel import sharding
from maeclip_jax.run import train
from tests import runs
from tests.run.transfers import Fetched, guarded  # noqa: F401

STEPS = "steps=3,save=2,batch=8,evals=false"
pytestmark = pytest.mark.usefixtures("guarded")


def test_a_batch_that_was_not_placed_is_found(tmp_path, monkeypatch):
    place, steps = sharding.place, train._Run._steps

    def forgets_one(batch, mesh):
        return place(batch, mesh) | {"text": batch["text"]}

    def forgetful(self, *args):  # the step is compiled for placed batches; from then on one array is forgotten
        monkeypatch.setattr(sharding, "place", forgets_one)
        return steps(self, *args)

    monkeypatch.setattr(train._Run, "_steps", forgetful)
    with pytest.raises(Exception, match=r"Disallowed host-to-device transfer.*int32.8,"):
        runs.run(tmp_path, f"objective=clip,{STEPS}", 2)


def test_a_metric_that_is_read_alone_is_found(tmp_path, monkeypatch):
    report = train._Run._report

    def hasty(self, step, metrics, *args):
        float(metrics["loss"])
        return report(self, step, metrics, *args)

    monkeypatch.setattr(train._Run, "_report", hasty)
    with pytest.raises(Fetched, match=r"__float__ of float32\[\]"):
        runs.run(tmp_path, f"objective=clip,{STEPS}", 2)

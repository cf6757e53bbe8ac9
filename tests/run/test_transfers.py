"""The steps of the loop move nothing unasked: batches are placed, metrics are fetched together, and that is all.

jax guards both directions, but on the CPU, where values that come back lie in the same memory, only what goes to a
device. So a value that is read here without jax.device_get is an error of this file's own.
"""

import contextlib
import threading

import jax
import jax.numpy as jnp
import pytest

from maeclip_jax.parallel import sharding
from maeclip_jax.run import saving, train
from tests import runs

STEPS = "steps=3,save=2,batch=8,evals=false"
READS = ("__float__", "__int__", "__bool__", "__index__", "__array__", "item", "tolist")


class Fetched(Exception):
    """An array on the device was read without being asked for."""


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """Transfers that nobody asked for are errors while the loop makes steps; a checkpoint asks for what it saves."""
    strict = threading.local()

    @contextlib.contextmanager
    def reading(allowed: bool):
        before, strict.on = getattr(strict, "on", False), not allowed
        try:
            yield
        finally:
            strict.on = before

    def within(owner, name, *contexts):
        inner = getattr(owner, name)

        def outer(*args, **kwargs):
            with contextlib.ExitStack() as stack:
                for make, word in contexts:
                    stack.enter_context(make(word))
                return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, outer)

    def refuse(array, name):
        inner = getattr(array, name)

        def outer(self, *args, **kwargs):
            if getattr(strict, "on", False):
                raise Fetched(f"{name} of {self.aval}")
            return inner(self, *args, **kwargs)

        monkeypatch.setattr(array, name, outer)

    for name in READS:
        refuse(type(jnp.zeros(())), name)
    within(train._Run, "_steps", (jax.transfer_guard, "disallow"), (reading, False))
    within(jax, "device_get", (reading, True))
    within(saving.Checkpoints, "save", (reading, True))


@pytest.mark.parametrize("objective", ["m3ae", "siglip", "mae_clip", "slip", "vqa,count=0"])
def test_steps_transfer_nothing_unasked(objective, tmp_path):
    runs.run(tmp_path, f"objective={objective},{STEPS}", 2)
    assert list(runs.series(tmp_path)) == [1, 2, 3]


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

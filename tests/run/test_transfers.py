"""The steps of the loop move nothing to the devices unasked: batches are placed, metrics fetched, and that is all.

On the CPU, jax guards only what goes to a device; values that come back lie in the same memory.
"""

import jax
import pytest

from maeclip_jax.parallel import sharding
from maeclip_jax.run import train
from tests import runs

STEPS = "steps=3,save=2,batch=8,evals=false"


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """Transfers that nobody asked for are errors while the loop makes steps."""
    steps = train._Run._steps

    def under_guard(*args):
        with jax.transfer_guard("disallow"):
            return steps(*args)

    monkeypatch.setattr(train._Run, "_steps", under_guard)


@pytest.mark.parametrize("objective", ["m3ae", "siglip", "mae_clip", "slip", "vqa,count=0"])
def test_steps_transfer_nothing_unasked(objective, tmp_path):
    runs.run(tmp_path, f"objective={objective},{STEPS}", 2)
    assert list(runs.series(tmp_path)) == [1, 2, 3]


def test_a_batch_that_was_not_placed_is_found(tmp_path, monkeypatch):
    place = sharding.place

    def forgets_one(batch, mesh):
        return place(batch, mesh) | {"text": batch["text"]}

    # The step is compiled for batches that are placed; from then on one array is forgotten.
    def forgetful(self, *args, steps=train._Run._steps):
        monkeypatch.setattr(sharding, "place", forgets_one)
        return steps(self, *args)

    monkeypatch.setattr(train._Run, "_steps", forgetful)
    with pytest.raises(Exception, match=r"Disallowed host-to-device transfer.*int32.8,"):
        runs.run(tmp_path, f"objective=clip,{STEPS}", 2)
    assert not runs.series(tmp_path)

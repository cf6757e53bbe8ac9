import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals.loss import Loss
from tests.evals.found import notes, values


def counting(fake, rows):
    context = fake({"image": np.arange(rows, dtype=np.int32), "_key": np.array(["k"] * rows, object)})

    def loss(params, batch, seed):
        context.calls.append((seed, sorted(batch)))
        return {"loss": float(batch["image"].sum()), "top1": 1.0}

    context.loss = loss
    return context


def test_every_row_once_and_the_seed_is_fixed(fake):
    context = counting(fake, 10)
    got = values(Loss(context, data={}, batch_size=4, seed=5).run(None))
    assert got["loss"] == (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7) / 2 and got["top1"] == 1
    assert context.calls == [(5, ["image"]), (6, ["image"])]
    assert got["rows"]["rows"] == [[8, 2]]
    assert got == values(Loss(context, data={}, batch_size=4, seed=5).run(None))


def test_fewer_rows_than_a_batch_are_one_batch_and_the_number_says_so(fake):
    found = list(Loss(counting(fake, 3), data={}, batch_size=4).run(None))
    assert values(found)["loss"] == 0 + 1 + 2 and values(found)["rows"]["rows"] == [[3, 0]]
    assert notes(found) == {"loss": "a batch of 3", "top1": "a batch of 3"}


def test_too_few_rows(fake):
    """Said when it is made: before training."""
    context = counting(fake, 1)  # of an objective that compares pairs
    with pytest.raises(UserError, match="the data has 1 rows and batch_size is 4; valid: 2 or more of both"):
        Loss(context, data={}, batch_size=4)
    with pytest.raises(UserError, match="the data has 10 rows and batch_size is 1; valid: 2 or more of both"):
        Loss(counting(fake, 10), data={}, batch_size=1)
    context.objective.contrastive = False
    assert values(Loss(context, data={}, batch_size=4).run(None))["loss"] == 0
    several = fake({"image": np.arange(1, dtype=np.int32)}, process=(0, 2))
    with pytest.raises(UserError, match="valid: 2 or more of both, for each of 2 processes"):
        Loss(several, data={}, batch_size=4)

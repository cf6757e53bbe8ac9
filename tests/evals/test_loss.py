import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals.loss import Loss
from tests.evals.found import values


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


def test_too_few_rows(fake):
    with pytest.raises(UserError, match="3 rows, which do not fill one batch of 4; set batch_size to at most 3"):
        Loss(counting(fake, 3), data={}, batch_size=4)  # when it is made: before training

"""A few steps of what `python -m tests.numerics` computes for every objective: the ways that differ most."""

import numpy as np
import pytest

from tests import numerics

STEPS = 4


@pytest.mark.parametrize("objective, dtype, way", [
    ("m3ae", "float32", "8 devices, all of these"),
    ("clip", "bfloat16", "fused, kernels"),
    ("clip", "bfloat16", "fused layer, kernels"),
])  # fmt: skip
def test_a_step_loses_the_same_however_it_is_computed(objective, dtype, way):
    want = numerics.losses(objective, dtype, STEPS)
    have = numerics.losses(objective, dtype, STEPS, way)
    away, bound = numerics.difference(have, want), {"float32": 1e-6, "bfloat16": numerics.ROUNDING["bfloat16"]}[dtype]
    if dtype == "bfloat16" and away >= bound:  # jax 0.11 rounds more: scanned layers alone are 1.8e-3 away
        last_bit = (numerics.losses(objective, dtype, STEPS, numerics.LAST_BIT, draw) for draw in range(4))
        bound = max(4 * numerics.difference(loss, want) for loss in last_bit)
    assert away < bound
    assert np.all(np.diff(want)[-2:] != 0)  # the parameters changed

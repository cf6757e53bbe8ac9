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
    assert numerics.difference(have, want) < {"float32": 1e-6, "bfloat16": numerics.ROUNDING["bfloat16"]}[dtype]
    assert np.all(np.diff(want)[-2:] != 0)  # the parameters changed

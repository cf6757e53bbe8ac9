"""A few steps of what `python -m tests.numerics` computes for every objective: the ways that differ most."""

import numpy as np
import pytest

from tests import numerics

pytestmark = pytest.mark.long

STEPS = 8
# Of a loss: of the step that is farthest off, and of all by their root mean square. In bfloat16 the latter was 2.4e-4
# to 8.5e-4, and 5e-3 with gradients through attention that are halved.
FARTHEST = {"float32": 1e-6, "bfloat16": numerics.ROUNDING["bfloat16"]}
TOGETHER = {"float32": 1e-6, "bfloat16": 1.5e-3}


@pytest.mark.parametrize("objective, dtype, way", [
    ("m3ae", "float32", "8 devices, all of these"),
    ("clip", "bfloat16", "fused, kernels"),
    ("clip", "bfloat16", "fused layer, kernels"),
])  # fmt: skip
def test_a_step_loses_the_same_however_it_is_computed(objective, dtype, way):
    want = numerics.losses(objective, dtype, STEPS)
    have = numerics.losses(objective, dtype, STEPS, way)
    assert numerics.difference(have, want) < FARTHEST[dtype]
    assert np.sqrt(np.mean(np.square((have - want) / want))) < TOGETHER[dtype]
    assert np.all(np.diff(want)[-2:] != 0)  # the parameters changed

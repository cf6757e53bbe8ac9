"""A few steps of what `python -m tests.numerics` computes for every objective: the ways that differ most."""

import numpy as np
import pytest

from tests import numerics

STEPS = 8
# Of a loss. In bfloat16 a single step was rounded by up to 2.1e-3 (jax 0.11.2), so that the bound is of the root mean
# square over all: 2.4e-4 to 8.5e-4 were measured, and 5e-3 with gradients through attention that are halved.
MOST = {"float32": 1e-6, "bfloat16": 1.5e-3}


@pytest.mark.parametrize("objective, dtype, way", [
    ("m3ae", "float32", "8 devices, all of these"),
    ("clip", "bfloat16", "fused, kernels"),
    ("clip", "bfloat16", "fused layer, kernels"),
])  # fmt: skip
def test_a_step_loses_the_same_however_it_is_computed(objective, dtype, way):
    want = numerics.losses(objective, dtype, STEPS)
    have = numerics.losses(objective, dtype, STEPS, way)
    off = np.abs(np.subtract(have, want) / want)
    assert (np.max(off) if dtype == "float32" else np.sqrt(np.mean(off**2))) < MOST[dtype]
    assert np.all(np.diff(want)[-2:] != 0)  # the parameters changed

"""What a fused layer is held to: plain layers on one device, and in bfloat16 no farther from float32 than they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from maeclip_jax.parallel import sharding

MESHES = ((8, 1, 1), (2, 2, 2), (1, 4, 2))  # replica, fsdp, tensor
WORDS = (("scan", "none", 8), ("unroll", "full", 8), ("unroll", "none", 3))  # a batch of 3 does not divide over a mesh
# Each mesh with each of the words; each of both once in the tests that are not long.
meshes = pytest.mark.parametrize(
    "shape, layers, remat, batch",
    [
        pytest.param(shape, *words, marks=[pytest.mark.long] * (i != j))
        for i, shape in enumerate(MESHES)
        for j, words in enumerate(WORDS)
    ],
)


def as_near_in_bfloat16(plain, fused, low, dy):
    """In bfloat16, the output and the gradients of `fused` are at least as near to float32 as those of `plain`.

    Each gradient has the dtype of its argument. `low`: arguments, of which activations and matrices are bfloat16;
    `dy`: the gradient of what comes out.
    """
    want, back = jax.vjp(plain, *(x.astype(jnp.float32) for x in low))
    (got, fused_back), (theirs, plain_back) = jax.vjp(fused, *low), jax.vjp(plain, *low)

    def off(a, b):
        return float(jnp.sqrt(jnp.mean(jnp.square(a.astype(jnp.float32) - b))))

    assert got.dtype == jnp.bfloat16 and off(got, want) <= off(theirs, want)
    grads = fused_back(dy), plain_back(dy), back(dy.astype(jnp.float32))
    for given, mine, plains, exact in zip(low, *grads):
        assert mine.dtype == given.dtype and off(mine, exact) <= off(plains, exact)


def same_on_a_mesh(shape, plain, trunk, *args):
    """Loss and gradients of `trunk` on a mesh of eight devices are those of `plain` on one.

    `shape`: of the mesh (replica, fsdp, tensor). `plain`, `trunk`: Trunks of the same parameters; `args`: theirs.
    """
    params = plain.init(jax.random.key(0), *args)

    def loss(which):
        return lambda p: jnp.sum(jnp.square(which.apply(p, *args)))

    want, want_grads = jax.value_and_grad(loss(plain))(params)
    mesh = jax.make_mesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, sharding.named(sharding.specs(params, mesh), mesh))
        got, grads = jax.jit(jax.value_and_grad(loss(trunk)))(split)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grads, want_grads)

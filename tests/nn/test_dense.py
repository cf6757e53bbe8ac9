"""Products with weights: gradients as jax has them, in the order of the weights, and only those that are asked for."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.dense import Dense, product
from maeclip_jax.nn.transformer import Trunk

RNG = np.random.default_rng(0)
X, W = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((4, 5, 8), (8, 6)))


def value(times):
    return lambda x, w: jnp.sum(jnp.sin(times(x, w)))


@pytest.mark.parametrize("rows", [(), (4,), (4, 5), (2, 2, 5)])
def test_gradients_are_those_of_jax(rows):
    x = jnp.resize(X, (*rows, 8))
    found, want = (jax.jit(jax.grad(value(f), (0, 1)))(x, W) for f in (product, jnp.matmul))
    for a, b in zip(found, want):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("by, products", [(0, 2), (1, 2), ((0, 1), 3)])
def test_only_the_gradient_that_is_asked_for_is_computed_and_nothing_is_transposed(by, products):
    traced = str(jax.make_jaxpr(jax.grad(value(product), by))(X, W))
    assert traced.count("dot_general[") == products and "transpose" not in traced


def test_gradients_through_loops_recomputation_and_rows_of_a_batch():
    def deep(times):
        def layer(x, w):
            return jnp.tanh(times(x, w)), None

        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return lambda x, ws: jax.lax.scan(jax.checkpoint(layer, policy=policy), x, ws)[0].sum()

    ws = jnp.asarray(RNG.normal(size=(3, 8, 8)), jnp.float32)
    for function in (deep, lambda times: lambda x, w: jax.vmap(lambda row: deep(times)(row, w))(x).sum()):
        found, want = (jax.grad(function(f), (0, 1))(X, ws) for f in (product, jnp.matmul))
        for a, b in zip(found, want):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_layer_is_flax_dense():
    ours, theirs = (make(6, dtype=jnp.bfloat16) for make in (Dense, nn.Dense))
    params = ours.init(jax.random.key(0), X)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, theirs.init(jax.random.key(0), X)))
    assert np.array_equal(ours.apply(params, X), theirs.apply(params, X))


def test_on_a_cpu_every_product_of_bfloat16_is_a_fast_one():
    """The library that XLA of jax 0.12 has for them takes the products of a layer, forward and backward."""
    if tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12):
        pytest.skip("before jax 0.12 products of bfloat16 are computed in float32")
    trunk = Trunk(1, 2, layers="unroll", dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((4, 64, 128), jnp.bfloat16)
    params = jax.eval_shape(trunk.init, jax.random.key(0), x)
    loss = jax.grad(lambda params, x: jnp.square(trunk.apply(params, x).astype(jnp.float32)).sum(), (0, 1))
    computations = re.split(r"\n(?=\S)", jax.jit(loss).lower(params, x).compile().as_text())
    products = {c.split(" ", 1)[0].lstrip("%"): re.findall(r"= \S+ dot\([^\n]*", c) for c in computations}
    fast = set(re.findall(r"calls=%([\w.\-]+),[^\n]*__ynn_fusion", "\n".join(computations)))
    assert sum(len(found) for name, found in products.items() if name in fast) == 18
    assert not [line for name, found in products.items() if name not in fast for line in found]

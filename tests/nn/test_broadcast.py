"""Parameters that many rows share: their gradients are sums of float32, also where the rows are bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax import objectives
from maeclip_jax.nn.broadcast import broadcast
from maeclip_jax.nn.embed import lookup
from maeclip_jax.parallel import sharding
from maeclip_jax.params import flatten

RNG = np.random.default_rng(0)


def gradient(function, x, d_out):
    return np.asarray(jax.jit(lambda x, d: jax.vjp(function, x)[1](d)[0])(x, d_out), np.float64)


@pytest.mark.parametrize("of, shape", [((8,), (64, 256, 8)), ((1, 256, 8), (64, 256, 8)), ((1, 1, 8), (64, 256, 8))])
def test_a_sum_of_many_rows_of_bfloat16_is_right(of, shape):
    d_out = jnp.asarray(RNG.normal(1, 1, shape), jnp.bfloat16)
    x = jnp.zeros(of, jnp.bfloat16)
    exact = np.asarray(d_out, np.float64)
    want = exact.sum(tuple(i for i in range(3) if len(of) <= 2 - i or of[i - 3 + len(of)] == 1)).reshape(of)
    found = gradient(lambda x: broadcast(x, shape), x, d_out)
    np.testing.assert_allclose(found, want, rtol=2**-8)  # rounded once
    # as jax has it
    assert len(of) > 1 or not np.allclose(gradient(lambda x: jnp.broadcast_to(x, shape), x, d_out), want, rtol=0.1)


def test_in_float32_it_is_what_jax_has():
    x, d_out = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((8,), (4, 16, 8)))
    for function in (jnp.broadcast_to, broadcast):
        assert np.array_equal(function(x, d_out.shape), np.broadcast_to(x, d_out.shape))
    found, want = (gradient(lambda x, f=f: f(x, d_out.shape), x, d_out) for f in (broadcast, jnp.broadcast_to))
    np.testing.assert_allclose(found, want, rtol=1e-6)


def counts_and_gradient(mesh=None):
    """A table of 8 rows of which the first is looked up 6,400 times; the gradient by it, and the exact one."""
    ids = np.zeros((256, 32), np.int32)
    ids[:, 25:] = RNG.integers(1, 8, (256, 7))
    d_out = jnp.asarray(RNG.normal(1, 1, (256, 32, 4)), jnp.bfloat16)
    want = np.zeros((8, 4))
    np.add.at(want, ids, np.asarray(d_out, np.float64))
    return gradient(lambda t: lookup(t, jnp.asarray(ids)), jnp.zeros((8, 4), jnp.bfloat16), d_out), want


def test_a_row_that_is_looked_up_often_has_its_whole_gradient():
    found, want = counts_and_gradient()
    np.testing.assert_allclose(found, want, rtol=2**-8)


@pytest.mark.parametrize("replica, fsdp, tensor", [(2, 4, 1), (1, 8, 1), (8, 1, 1), (2, 2, 2)])
def test_so_it_has_on_eight_devices(replica, fsdp, tensor):
    with jax.set_mesh(sharding.make_mesh({"replica": replica, "fsdp": fsdp, "tensor": tensor})):
        found, want = counts_and_gradient()
    np.testing.assert_allclose(found, want, rtol=2**-8)


@pytest.mark.parametrize("replica, fsdp, tensor", [(1, 8, 1), (2, 2, 2)])
@pytest.mark.parametrize("dtype, rest", [("float32", ()), ("bfloat16", (5,)), ("float32", (3, 2))])
@pytest.mark.parametrize("table, sent", [((512, 256), "all_to_all"), ((3, 256), "reduce_scatter"),
                                         ((512, 56), "reduce_scatter"), ((512, 257), "all_reduce")])  # fmt: skip
def test_rows_or_their_sums_are_sent_to_who_has_their_columns(replica, fsdp, tensor, dtype, rest, table, sent):
    ids = RNG.integers(0, table[0], (16, *rest))
    d_out = jnp.asarray(RNG.normal(size=(*ids.shape, table[1])), dtype)
    want = np.zeros(table)
    np.add.at(want, ids, np.asarray(d_out, np.float64))

    def of_table(d_out):
        return jax.vjp(lambda t: lookup(t, jnp.asarray(ids)), jnp.zeros(table, dtype))[1](d_out)[0]

    with jax.set_mesh(sharding.make_mesh({"replica": replica, "fsdp": fsdp, "tensor": tensor})):
        text = jax.jit(of_table).lower(d_out).as_text()
        found = np.asarray(jax.jit(of_table)(d_out), np.float64)
    np.testing.assert_allclose(found, want, rtol={"float32": 1e-5, "bfloat16": 2**-7}[dtype], atol=1e-6)
    said = {word for word in ("all_to_all", "reduce_scatter", "all_reduce") if f"stablehlo.{word}" in text}
    assert said - {"all_reduce"} == {sent} - {"all_reduce"} and (replica == 1 or "all_reduce" in said)


def test_gradients_in_bfloat16_are_those_of_float32():
    image = dict(size=16, patch=8, width=32, depth=1, heads=2, pool="gap", projection="none")
    text = dict(vocab=50, length=32, width=32, depth=1, heads=2, pool="gap", padding="attended", projection="affine")
    model = dict(image_tower=image, text_tower=text, embed_width=32, loss="sigmoid")
    model |= dict(decoder_tower=dict(width=32, depth=1, heads=2), mask=dict(image=0.5, text=0.5))
    model |= dict(weights=dict(contrast=1.0, image=1.0, text=1.0))
    ids = RNG.integers(1, 50, (256, 32)).astype(np.int32)
    ids[:, 12:] = 0
    batch = dict(image=RNG.integers(0, 256, (256, 16, 16, 3)).astype(np.uint8), text=ids)
    found = {}
    for dtype in ("float32", "bfloat16"):
        made = objectives.make("mae_clip", model | dict(compute=dict(dtype=dtype, layers="unroll")))
        rngs = {"params": jax.random.key(0), "mask": jax.random.key(1)}
        few = {k: v[:8] for k, v in batch.items()}
        params = jax.jit(lambda r, b, made=made: made.init(r, b, train=True))(rngs, few)["params"]
        apply = functools.partial(made.apply, rngs={"mask": jax.random.key(2)}, train=True)
        take = jax.jit(jax.grad(lambda p, apply=apply: apply({"params": p}, batch)[0]))
        found[dtype] = jax.tree.map(lambda x: np.asarray(x, np.float64), flatten(take(params)))
    error = {
        path: np.linalg.norm(found["bfloat16"][path] - want) / np.linalg.norm(want)
        for path, want in found["float32"].items()
        if np.linalg.norm(want) > 1e-6
    }
    usual = np.median(list(error.values()))
    wrong = {path: e for path, e in error.items() if e > 8 * usual}
    assert usual < 0.02 and not wrong, (usual, wrong)

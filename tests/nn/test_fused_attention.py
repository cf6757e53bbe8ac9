"""The fused attention kernels, interpreted, and their XLA form against jax's own attention, forward and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from maeclip_jax.nn.attention import MOST_TOKENS, fused, in_order
from maeclip_jax.nn.transformer import Trunk
from maeclip_jax.parallel import sharding
from tests.nn import fused_layers

# batch, tokens, heads, width of a head, causal, padded: pictures, captions, decoders (32), ViT-H (80), odd heads.
CASES = [
    (2, 20, 4, 64, False, False),
    (4, 17, 2, 64, True, True),
    (3, 49, 3, 64, False, False),
    (2, 13, 4, 32, False, True),
    (2, 9, 2, 80, True, False),
    (1, 7, 1, 128, False, True),
]


def plain(qkv, bias, pad, heads, causal):
    b, n, _ = qkv.shape
    q, k, v = (x.reshape(b, n, heads, -1) for x in jnp.split(qkv + bias[None, None], 3, axis=-1))
    mask = None if pad is None else ~pad[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal).reshape(b, n, -1)


def arrays(batch, tokens, heads, width, padded, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = jax.random.normal(keys[0], (batch, tokens, 3 * heads * width), dtype)
    bias = 0.5 * jax.random.normal(keys[1], qkv.shape[-1:], dtype)
    pad = jnp.arange(tokens)[None] >= tokens - 2 * jnp.arange(batch)[:, None] if padded else None
    return qkv, bias, pad, jax.random.normal(keys[2], (batch, tokens, heads * width), dtype)


@pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "xla"])
@pytest.mark.parametrize("batch,tokens,heads,width,causal,padded", CASES)
def test_forward_and_gradients_are_those_of_plain_attention(batch, tokens, heads, width, causal, padded, interpret):
    qkv, bias, pad, dy = arrays(batch, tokens, heads, width, padded)
    want, back = jax.vjp(lambda x, b: plain(x, b, pad, heads, causal), qkv, bias)
    got, fused_back = jax.vjp(lambda x, b: fused(x, b, pad, heads=heads, causal=causal, interpret=interpret), qkv, bias)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(fused_back(dy), back(dy)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=2e-5)


def test_bfloat16_is_as_near_to_float32_as_plain_bfloat16_is():
    qkv, bias, pad, dy = arrays(2, 33, 2, 64, True)
    exact, back = jax.vjp(lambda x: plain(x, bias, pad, 2, False), qkv)
    low = [x.astype(jnp.bfloat16) for x in (qkv, bias, dy)]
    got, fused_back = jax.vjp(lambda x: fused(x, low[1], pad, heads=2, interpret=True), low[0])
    theirs, plain_back = jax.vjp(lambda x: plain(x, low[1], pad, 2, False), low[0])

    def off(a, b):
        return float(jnp.abs(a.astype(jnp.float32) - b).max())

    assert got.dtype == jnp.bfloat16
    assert off(got, exact) <= 1.5 * off(theirs, exact)
    assert off(fused_back(low[2])[0], back(dy)[0]) <= 1.5 * off(plain_back(low[2])[0], back(dy)[0])


@pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "xla"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_row_of_padding_attends_evenly_as_in_plain_attention(causal, interpret):
    qkv, bias, _, dy = arrays(3, 6, 2, 64, False)
    pad = jnp.arange(6)[None] < jnp.array([6, 2, 0])[:, None]  # all of a sample; what a causal row could see; nothing
    want, back = jax.vjp(lambda x, b: plain(x, b, pad, 2, causal), qkv, bias)
    got, fused_back = jax.vjp(lambda x, b: fused(x, b, pad, heads=2, causal=causal, interpret=interpret), qkv, bias)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for mine, theirs in zip(fused_back(dy), back(dy)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("padded", [True, False])
def test_a_single_token_on_a_mesh(padded):
    qkv, bias, pad, _ = arrays(4, 1, 2, 64, padded)
    mesh = jax.make_mesh((2, 2, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        got = jax.jit(lambda *a: fused(*a, heads=2))(qkv, bias, pad)
    values = (qkv + bias[None, None]).reshape(4, 1, 2, 3, 64)[..., 2, :]  # each device has (3, heads, width) of its own
    np.testing.assert_allclose(got, values.reshape(4, 1, 128), rtol=1e-6)


@pytest.mark.parametrize("words", [("fused", "scan", "none"), ("fused_interpret", "unroll", "full")])
@pytest.mark.parametrize("shape", [pytest.param((8, 1, 1), marks=pytest.mark.long), (2, 2, 2), (1, 4, 2)])
def test_a_trunk_on_a_mesh_is_a_trunk_of_plain_attention_on_one_device(shape, words):
    attention, layers, remat = words
    x = jax.random.normal(jax.random.key(1), (8, 10, 64))
    pad = jnp.arange(10)[None] >= jnp.arange(3, 11)[:, None]
    trunk = Trunk(2, 4, attention=attention, layers=layers, remat=remat)
    fused_layers.same_on_a_mesh(shape, Trunk(2, 4, layers=layers), trunk, x, pad)


def test_the_order_of_columns_is_three_heads_width():
    x = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)  # heads, 3, width
    np.testing.assert_array_equal(in_order(x.ravel(), 2), x.swapaxes(0, 1).ravel())


@pytest.mark.parametrize("tensor", [4, 8])
def test_heads_that_do_not_divide_over_the_mesh_say_so(tensor):
    mesh = jax.make_mesh((8 // tensor, 1, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=f"6 heads .* mesh.tensor={tensor}; valid: .*=1, 2, 3, 6,"):
        in_order(jnp.zeros(6 * 3 * 64), 6)


def test_too_many_tokens_say_so():
    with pytest.raises(ValueError, match=f"attention fused takes up to {MOST_TOKENS} tokens, not 700; valid here: xla"):
        fused(jnp.zeros((1, 700, 3 * 64)), jnp.zeros(3 * 64), heads=1)

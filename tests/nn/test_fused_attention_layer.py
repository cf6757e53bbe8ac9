"""The fused norm, projections and attention, interpreted, and their XLA form against flax's layers, with gradients."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.attention_layer import fused
from maeclip_jax.nn.attention_layer_device import ROWS, plan, worthwhile
from maeclip_jax.nn.kernels import LEAST_ROWS, vmem_to_plan
from maeclip_jax.nn.transformer import Block, Trunk, draw_paths
from tests.nn import fused_layers

WAYS = ("forward", "backward")
# batch, tokens, width, heads, width of a head, causal, padded: several samples of a step, whole tiles, several steps.
CASES = [
    (2, 20, 32, 2, 64, False, False),
    (4, 16, 64, 4, 32, True, True),
    (6, 130, 16, 1, 128, False, True),
]


def plain(pad, heads, causal, x, scale, shift, in_, in_bias, out, out_bias):
    b, n, _ = x.shape
    y = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32).apply({"params": {"scale": scale, "bias": shift}}, x)
    qkv = y.astype(x.dtype) @ in_ + in_bias[None, None]
    q, k, v = (z.reshape(b, n, heads, -1) for z in jnp.split(qkv, 3, axis=-1))
    mask = None if pad is None else ~pad[:, None, None, :]
    attended = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal).reshape(b, n, -1)
    return x + (attended @ out + out_bias[None, None])


def arrays(batch, tokens, width, heads, head, padded, dtype=jnp.float32):
    """(pad, [x, the weights], the gradient of what comes out)."""
    x, columns = (batch, tokens, width), heads * head
    shapes = x, (width,), (width,), (width, 3 * columns), (3 * columns,), (columns, width), (width,), x
    sizes = 2.0, 0.3, 0.1, 2 * width**-0.5, 0.3, columns**-0.5, 0.1, 1.0
    keys = jax.random.split(jax.random.key(0), len(shapes))
    x, scale, shift, *weights, dy = (n * jax.random.normal(k, s) for k, s, n in zip(keys, shapes, sizes))
    weights, x, dy = jax.tree.map(lambda a: a.astype(dtype), (weights, x + 0.5, dy))
    pad = jnp.arange(tokens)[None] >= tokens - 2 * jnp.arange(batch)[:, None] if padded else None
    return pad, [x, 1 + scale, shift, *weights], dy


def ours(pad, heads, causal, interpret, x, *weights):
    return fused(x, pad, *weights, heads=heads, causal=causal, interpret=interpret)


def same(pad, heads, causal, interpret, args, dy):
    want, back = jax.vjp(functools.partial(plain, pad, heads, causal), *args)
    got, fused_back = jax.vjp(functools.partial(ours, pad, heads, causal, interpret), *args)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(fused_back(dy), back(dy)):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "xla"])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_are_those_of_dense_layers(case, interpret):
    *shape, heads, head, causal, padded = case
    pad, args, dy = arrays(*shape, heads, head, padded)
    same(pad, heads, causal, interpret, args, dy)


def test_the_cases_work_in_one_step_and_in_several():
    steps = [[plan(way, *case[:3], case[3] * case[4], item=4).steps for way in WAYS] for case in CASES]
    assert steps == [[1, 1], [1, 1], [2, 2]]


@pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "xla"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_row_of_padding_attends_evenly_as_in_plain_attention(causal, interpret):
    _, args, dy = arrays(3, 6, 16, 2, 64, False)
    pad = jnp.arange(6)[None] < jnp.array([6, 2, 0])[:, None]  # all of a sample; what a causal row could see; nothing
    same(pad, 2, causal, interpret, args, dy)


def test_bfloat16_is_as_near_to_float32_as_plain_bfloat16_is():
    pad, low, dy = arrays(4, 49, 128, 2, 64, True, jnp.bfloat16)
    fused_layers.as_near_in_bfloat16(
        functools.partial(plain, pad, 2, False), functools.partial(ours, pad, 2, False, True), low, dy
    )


@fused_layers.meshes
def test_a_trunk_on_a_mesh_is_a_trunk_of_dense_layers_on_one_device(shape, layers, remat, batch):
    x = jax.random.normal(jax.random.key(1), (batch, 10, 64))
    pad = jnp.arange(10)[None] >= jnp.arange(3, 3 + batch)[:, None] if layers == "scan" else None
    trunk = Trunk(2, 4, attention="fused_layer_interpret", layers=layers, remat=remat)
    fused_layers.same_on_a_mesh(shape, Trunk(2, 4, layers=layers), trunk, x, pad)


@pytest.mark.parametrize("shape", [(64, 196, 768, 768), (64, 64, 768, 768), (64, 49, 768, 768), (64, 196, 1024, 1024)])
def test_what_a_step_takes_fits_in_the_chip(shape):
    batch, tokens, width, columns = shape
    for way in WAYS:
        made = plan(way, *shape)
        assert made.memory <= vmem_to_plan() and made.samples * tokens <= ROWS and made.samples * made.steps == batch
    assert worthwhile((batch, tokens), width, columns, 64, jnp.bfloat16) == (batch * tokens >= LEAST_ROWS)


@pytest.mark.parametrize(
    "rows, width, columns, head, dtype",
    [
        ((LEAST_ROWS // 64 - 1, 64), 768, 768, 64, jnp.bfloat16),  # too few tokens
        ((64, 196), 96, 128, 64, jnp.bfloat16),  # no whole tiles
        ((64, 256), 1280, 1280, 80, jnp.bfloat16),  # heads that do not fill lanes
        ((64, 196), 768, 768, 64, jnp.float32),
        ((64, 700), 768, 768, 64, jnp.bfloat16),  # scores do not fit
        ((83, 64), 768, 768, 64, jnp.bfloat16),  # a batch that makes steps of a sample
        ((64, 196), 2048, 2048, 64, jnp.bfloat16),  # sums of gradients do not fit
    ],
)
def test_the_kernel_is_not_taken_where_it_does_not_fit(rows, width, columns, head, dtype):
    assert not worthwhile(rows, width, columns, head, dtype)


def test_too_many_tokens_say_so():
    _, args, _ = arrays(1, 641, 16, 1, 64, False)
    with pytest.raises(ValueError, match="attention fused_layer takes up to 640 tokens, not 641; valid here: xla"):
        jax.eval_shape(functools.partial(ours, None, 1, False, True), *args)


def kernels(x, heads: int, dtype, **more) -> set[str]:
    """Names of the kernels in a block."""
    made = Block(heads, 4.0, attention="fused_layer", dtype=dtype)
    text = str(jax.make_jaxpr(lambda x: made.init_with_output(jax.random.key(0), x, **more)[0][0])(x))
    return set(re.findall(r"\battention(?:_layer)?_forward", text))


def test_the_kernel_is_taken_for_tokens_in_the_compute_dtype_whose_paths_are_kept():
    x = jax.ShapeDtypeStruct((64, 64, 128), jnp.bfloat16)
    assert kernels(x, 2, jnp.bfloat16) == {"attention_layer_forward"}
    assert kernels(x, 2, jnp.bfloat16, factors_Bx2=jnp.ones((64, 2))) == {"attention_forward"}
    assert kernels(jax.ShapeDtypeStruct(x.shape, jnp.float32), 2, jnp.bfloat16) == {"attention_forward"}
    assert kernels(jax.ShapeDtypeStruct((8, *x.shape[1:]), jnp.bfloat16), 2, jnp.bfloat16) == {"attention_forward"}


def test_a_trunk_that_drops_paths_is_the_same_in_every_implementation():
    x, noise = jax.random.normal(jax.random.key(1), (4, 6, 32)), draw_paths(jax.random.key(2), 4, 2)
    trunks = [Trunk(2, 4, attention=word, drop_path=0.5) for word in ("xla", "fused_layer_interpret")]
    params = trunks[0].init(jax.random.key(0), x)
    dropped = [trunk.apply(params, x, None, noise) for trunk in trunks]
    np.testing.assert_allclose(*dropped, rtol=1e-5, atol=1e-5)
    kept = [trunk.apply(params, x) for trunk in trunks]
    np.testing.assert_allclose(*kept, rtol=1e-5, atol=1e-5)


def test_a_step_that_does_not_fit_says_so():
    _, args, _ = arrays(1, 8, 2048, 32, 64, False)
    with pytest.raises(
        ValueError, match=r"attention fused_layer: 8 tokens 2048 wide .* do not fit .*: fused_core, xla"
    ):
        jax.eval_shape(lambda *a: jax.vjp(functools.partial(ours, None, 32, False, True), *a)[1](a[0]), *args)

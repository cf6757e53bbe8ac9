"""The fused norm and MLP, interpreted, and their XLA form against flax's layers, forward and gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.kernels import LEAST_ROWS, vmem_to_plan
from maeclip_jax.nn.mlp import fused
from maeclip_jax.nn.mlp_device import ROWS, UNITS, Mlp, plan, worthwhile
from maeclip_jax.nn.transformer import ACTIVATIONS, Block, Trunk, draw_paths
from tests.nn import fused_layers

WAYS = ("forward", "backward")
# batch, tokens, width, hidden: whole tiles, rows to be filled up, several blocks of samples, parts of the hidden units.
CASES = [(2, 16, 32, 128), (4, 9, 32, 256), (6, 300, 16, 2048)]


def plain(act, x, scale, shift, up, up_bias, down, down_bias):
    norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32)
    y = norm.apply({"params": {"scale": scale, "bias": shift}}, x).astype(x.dtype)
    return x + (act(y @ up + up_bias[None, None]) @ down + down_bias[None, None])


def arrays(batch, tokens, width, hidden, dtype=jnp.float32):
    tokens, weights = (batch, tokens, width), ((width, hidden), (hidden,), (hidden, width), (width,))
    shapes = tokens, (width,), (width,), *weights, tokens
    sizes = 2.0, 0.3, 0.1, width**-0.5, 0.1, hidden**-0.5, 0.1, 1.0
    keys = jax.random.split(jax.random.key(0), len(shapes))
    x, scale, shift, *weights, dy = (n * jax.random.normal(k, s) for k, s, n in zip(keys, shapes, sizes))
    weights, x, dy = jax.tree.map(lambda a: a.astype(dtype), (weights, x + 0.5, dy))
    return [x, 1 + scale, shift, *weights], dy


@pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "xla"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_forward_and_gradients_are_those_of_dense_layers(case, name, interpret):
    args, dy = arrays(*case)
    act = ACTIVATIONS[name]
    want, back = jax.vjp(functools.partial(plain, act), *args)
    got, fused_back = jax.vjp(functools.partial(fused, act=act, name=name, interpret=interpret), *args)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(fused_back(dy), back(dy)):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_can_be_lowered_for_a_tpu(name, way):
    (x, scale, shift, up, up_bias, down, down_bias), dy = arrays(2, 16, 128, 256, jnp.bfloat16)
    vectors, matrices = (scale[None], shift[None]), (up, up_bias[None], down.T)
    args = (x, *vectors, *matrices, down_bias[None]) if way == "forward" else (x, dy, *vectors, *matrices)
    traced = jax.jit(getattr(Mlp(ACTIVATIONS[name], name), way)).trace(*args)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_the_cases_work_in_several_blocks_and_parts():
    last = plan("backward", *CASES[-1], item=4)
    assert last.steps == (2, 4) and last.samples == 3 and last.units == UNITS["backward"]


def test_bfloat16_is_as_near_to_float32_as_plain_bfloat16_is():
    act = ACTIVATIONS["gelu_tanh"]
    low, dy = arrays(4, 49, 128, 512, jnp.bfloat16)
    interpreted = functools.partial(fused, act=act, name="gelu_tanh", interpret=True)
    fused_layers.as_near_in_bfloat16(functools.partial(plain, act), interpreted, low, dy)


@fused_layers.meshes
def test_a_trunk_on_a_mesh_is_a_trunk_of_dense_layers_on_one_device(shape, layers, remat, batch):
    x = jax.random.normal(jax.random.key(1), (batch, 10, 64))
    trunk = Trunk(2, 4, mlp="fused_interpret", layers=layers, remat=remat)
    fused_layers.same_on_a_mesh(shape, Trunk(2, 4, layers=layers), trunk, x)


@pytest.mark.parametrize(
    "shape", [(64, 196, 768, 3072), (64, 64, 768, 3072), (64, 196, 1024, 4096), (64, 256, 1280, 5120)]
)
def test_what_a_step_takes_fits_in_the_chip(shape):
    batch, tokens, _, hidden = shape
    for way in WAYS:
        made = plan(way, *shape)
        assert made.memory <= vmem_to_plan() and made.samples * tokens <= ROWS[way]
        assert made.samples * made.steps[0] == batch and made.units * made.steps[1] == hidden
    assert worthwhile((batch, tokens), *shape[2:], jnp.bfloat16)


@pytest.mark.parametrize(
    "rows, width, hidden, dtype",
    [
        ((LEAST_ROWS // 64 - 1, 64), 768, 3072, jnp.bfloat16),  # too few tokens
        ((83, 64), 768, 3072, jnp.bfloat16),  # a batch that makes steps of a sample
        ((64, 196), 96, 384, jnp.bfloat16),  # no whole tiles
        ((64, 196), 768, 3072, jnp.float32),
        ((64, 196), 2048, 8192, jnp.bfloat16),  # sums of gradients do not fit
    ],
)
def test_the_kernel_is_not_taken_where_it_does_not_fit(rows, width, hidden, dtype):
    assert not worthwhile(rows, width, hidden, dtype)
    assert "pallas_call" not in program(jax.ShapeDtypeStruct((*rows, width), dtype), hidden, dtype)


def program(x, hidden: int, dtype, **more) -> str:
    made = Block(1, hidden / x.shape[2], "gelu_tanh", mlp="fused", dtype=dtype)
    return str(jax.make_jaxpr(lambda x: made.init_with_output(jax.random.key(0), x, **more)[0][0])(x))


def test_the_kernel_is_taken_for_tokens_in_the_compute_dtype_whose_paths_are_kept():
    rows, hidden = (64, 64, 128), 512
    x = jax.ShapeDtypeStruct(rows, jnp.bfloat16)
    assert "pallas_call" in program(x, hidden, jnp.bfloat16)
    assert "pallas_call" not in program(x, hidden, jnp.bfloat16, factors_Bx2=jnp.ones((64, 2)))
    assert "pallas_call" not in program(jax.ShapeDtypeStruct(rows, jnp.float32), hidden, jnp.bfloat16)


def test_a_trunk_that_drops_paths_is_the_same_in_every_implementation():
    x, noise = jax.random.normal(jax.random.key(1), (4, 6, 32)), draw_paths(jax.random.key(2), 4, 2)
    trunks = [Trunk(2, 4, mlp=word, drop_path=0.5) for word in ("xla", "fused_interpret")]
    params = trunks[0].init(jax.random.key(0), x)
    same = [trunk.apply(params, x, None, noise) for trunk in trunks]
    np.testing.assert_array_equal(*same)
    kept = [trunk.apply(params, x) for trunk in trunks]
    np.testing.assert_allclose(*kept, rtol=1e-5, atol=1e-5)


def test_a_step_that_does_not_fit_says_so():
    args, _ = arrays(1, 8, 2048, 8192)
    wide = functools.partial(fused, act=jax.nn.gelu, name="x", interpret=True)
    with pytest.raises(ValueError, match=r"mlp fused: 8 tokens 2048 wide with 8192 hidden units do not fit .*: xla"):
        jax.eval_shape(lambda *a: jax.vjp(wide, *a)[1](a[0]), *args)

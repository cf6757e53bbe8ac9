"""The trunk: against float64 arithmetic, who may influence whom (by gradient), and forms of it that must agree."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.transformer import Block, Trunk, attention_mask, batch_sharded
from maeclip_jax.params import flatten, stack_layers, unflatten, unstack_layers
from maeclip_jax.run import flops
from tests.parameters import random_parameters

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 5, 8))
PAD = jnp.asarray([[False, False, False, True, True], [False] * 5])


def test_attention_mask_shapes_and_values():
    assert attention_mask(5, None, False) is None
    assert attention_mask(5, PAD, False).shape == (2, 1, 1, 5)
    assert attention_mask(5, None, True).shape == (1, 1, 5, 5)
    both = np.asarray(attention_mask(5, PAD, True))
    assert both.shape == (2, 1, 5, 5)
    for sample in range(2):
        for query in range(5):
            for key in range(5):
                assert both[sample, 0, query, key] == (key <= query and not PAD[sample, key])


def block_in_float64(p, x, heads, may_attend):
    """A pre-norm block in numpy. `p`: {path: array}; `may_attend` [B, N, N]."""

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def dense(name, x):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    batch, n, width = x.shape
    qkv = dense("attention/qkv", norm("norm_1", x)).reshape(batch, n, heads, 3, width // heads)
    attended = np.zeros((batch, n, heads, width // heads))
    for b, h in np.ndindex(batch, heads):
        q, k, v = qkv[b, :, h, 0], qkv[b, :, h, 1], qkv[b, :, h, 2]
        score = np.where(may_attend[b], q @ k.T / math.sqrt(width // heads), -np.inf)
        share = np.exp(score - score.max(-1, keepdims=True))
        attended[b, :, h] = share / share.sum(-1, keepdims=True) @ v
    x = x + dense("attention/out", attended.reshape(batch, n, width))
    hidden = dense("mlp/up", norm("norm_2", x))
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return x + dense("mlp/down", hidden)


def test_a_block_is_its_definition_in_float64():
    mask = attention_mask(5, PAD, True)
    block = Block(heads=2, causal=True)
    params = random_parameters(block.init, X, PAD)
    out = jax.jit(block.apply)({"params": params}, X, PAD)[0]
    flat = {k: np.asarray(v, np.float64) for k, v in flatten(params).items()}
    allowed = np.broadcast_to(np.asarray(mask)[:, 0], (2, 5, 5))
    np.testing.assert_allclose(out, block_in_float64(flat, np.asarray(X, np.float64), 2, allowed), rtol=1e-4, atol=1e-4)


def influence(trunk, pad):
    """[sample, output token, input token]: the largest gradient of one on the other."""
    params = {"params": random_parameters(trunk.init, X, pad)}
    weigh = jax.random.normal(KEY, (8,))
    jacobian = jax.jit(jax.jacrev(lambda x: trunk.apply(params, x, pad) @ weigh))(X)  # [B, N, B, N, D]
    assert not np.asarray(jacobian)[0, :, 1].any()  # samples never meet
    return np.stack([np.abs(np.asarray(jacobian)[b, :, b]).max(-1) for b in range(2)])


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_a_causal_trunk_looks_back_only(layers):
    seen = influence(Trunk(depth=2, heads=2, causal=True, layers=layers), None)
    before = np.tril(np.ones((5, 5), bool))
    assert (seen[:, before] > 1e-6).all()
    assert (seen[:, ~before] == 0).all()


def test_pads_influence_no_other_token():
    seen = influence(Trunk(depth=2, heads=2), PAD)
    assert (seen[1] > 1e-6).all()  # without pads everyone sees everyone
    assert (seen[0, :, :3] > 1e-6).all()
    own = np.eye(5, dtype=bool)[:, 3:]
    assert (seen[0, :, 3:][~own] == 0).all()


def loss_and_grads(trunk, params):
    return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(trunk.apply({"params": p}, X, PAD)))))(params)


def nested(flat):
    return unflatten({p.removeprefix("trunk/"): leaf for p, leaf in flat.items()})


def flat(params):
    return {f"trunk/{p}": np.asarray(leaf) for p, leaf in flatten(params).items()}


def test_scanned_and_unrolled_layers_agree_forward_and_backward():
    scan, unroll = (Trunk(depth=3, heads=2, layers=layers) for layers in ("scan", "unroll"))
    params = random_parameters(scan.init, X, PAD)
    assert params["blocks"]["mlp"]["up"]["kernel"].shape == (3, 8, 32)
    loss, grads = loss_and_grads(scan, params)
    loss_unrolled, grads_unrolled = loss_and_grads(unroll, nested(unstack_layers(flat(params))))
    np.testing.assert_allclose(loss, loss_unrolled, rtol=1e-6)
    back = nested(stack_layers(flat(grads_unrolled)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b), rtol=2e-4, atol=1e-5), back, grads)


def test_every_layer_starts_with_its_own_numbers():
    kernel = jax.jit(Trunk(depth=3, heads=2).init)(KEY, X)["params"]["blocks"]["mlp"]["up"]["kernel"]
    assert len({np.asarray(layer).tobytes() for layer in kernel}) == 3
    # xavier: uniform with variance 2 / (in + out)
    np.testing.assert_allclose(np.std(kernel), math.sqrt(2 / (8 + 32)), rtol=0.1)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_rematerialisation_changes_the_work_and_not_the_gradients(layers):
    trunks = {r: Trunk(depth=2, heads=2, layers=layers, remat=r) for r in ("none", "dots", "full")}
    params = random_parameters(trunks["none"].init, X, PAD)
    results = {r: loss_and_grads(t, params) for r, t in trunks.items()}
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), results[remat], results["none"]
        )
    work = {
        r: flops.forward_matmul_flops(jax.grad(lambda p, t=t: jnp.sum(t.apply({"params": p}, X, PAD))), params)
        for r, t in trunks.items()
    }
    assert work["none"] < work["dots"] < work["full"]


def test_bfloat16_is_close_and_keeps_float32_parameters():
    full, half = Trunk(depth=2, heads=2), Trunk(depth=2, heads=2, dtype=jnp.bfloat16)
    params = {"params": random_parameters(half.init, X.astype(jnp.bfloat16), PAD)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    out = jax.jit(half.apply)(params, X.astype(jnp.bfloat16), PAD)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), jax.jit(full.apply)(params, X, PAD), atol=0.15)


def test_activations_are_pinned_to_the_batch_axes_only_where_they_divide():
    mesh = jax.make_mesh((2, 4, 1), ("replica", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    eight, five = jnp.zeros((8, 2, 4)), jnp.zeros((5, 2, 4))
    with jax.set_mesh(mesh):
        assert "('replica', 'fsdp')" in str(jax.make_jaxpr(batch_sharded)(eight))
        assert "sharding_constraint" not in str(jax.make_jaxpr(batch_sharded)(five))
    assert "sharding_constraint" not in str(jax.make_jaxpr(batch_sharded)(eight))


@pytest.mark.parametrize(
    "wrong, text",
    [
        (dict(heads=3), r"^width 8 does not divide into 3 heads$"),
        (dict(attention="flash"), r"^unknown attention 'flash'; valid: xla, cudnn, fused, fused_interpret$"),
        (dict(activation="relu"), r"^unknown activation 'relu'; valid: gelu, gelu_tanh, quick_gelu$"),
        (dict(remat="some"), r"^unknown remat 'some'; valid: none, full, dots$"),
        (dict(layers="loop"), r"^unknown layers 'loop'; valid: scan, unroll$"),
    ],
)
def test_unknown_words_are_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(Trunk(**(dict(depth=1, heads=2) | wrong)).init, KEY, X)

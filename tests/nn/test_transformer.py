"""The trunk: against float64 arithmetic, who may influence whom (by gradient), and forms of it that must agree."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.mesh import batch_sharded, columns_sharded
from maeclip_jax.nn.transformer import Block, Trunk, attention_mask, draw_paths, path_factors
from maeclip_jax.parallel.sharding import make_mesh
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


def block_in_float64(p, x, heads, may_attend, factors=1.0):
    """A pre-norm block in numpy. `p`: {path: array}; `may_attend` [B, N, N]; `factors` [B, 2] of its branches."""

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def dense(name, x):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    batch, n, width = x.shape
    of_attention, of_mlp = np.moveaxis(np.broadcast_to(factors, (batch, 2)), 1, 0)[..., None, None]
    qkv = dense("attention/qkv", norm("norm_1", x)).reshape(batch, n, heads, 3, width // heads)
    attended = np.zeros((batch, n, heads, width // heads))
    for b, h in np.ndindex(batch, heads):
        q, k, v = qkv[b, :, h, 0], qkv[b, :, h, 1], qkv[b, :, h, 2]
        score = np.where(may_attend[b], q @ k.T / math.sqrt(width // heads), -np.inf)
        share = np.exp(score - score.max(-1, keepdims=True))
        attended[b, :, h] = share / share.sum(-1, keepdims=True) @ v
    x = x + of_attention * dense("attention/out", attended.reshape(batch, n, width))
    hidden = dense("mlp/up", norm("norm_2", x))
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return x + of_mlp * dense("mlp/down", hidden)


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


def test_each_layer_drops_its_share_of_branches_and_keeps_their_mean():
    rates = np.linspace(0, 0.6, 4)  # of timm
    factors = np.asarray(path_factors(draw_paths(KEY, 20_000, 4), 0.6), np.float64)
    assert factors.shape == (4, 20_000, 2)
    for rate, layer in zip(rates, factors):
        assert {round(x, 4) for x in np.unique(layer)} == {round(1 / (1 - rate), 4)} | ({0.0} if rate else set())
        np.testing.assert_allclose((layer == 0).mean(0), rate, atol=0.02)  # 6 standard errors
        np.testing.assert_allclose(layer.mean(), 1, atol=0.03)
    assert abs(np.corrcoef(factors[3].T)[0, 1]) < 0.05  # the two branches do not share their fate
    assert (np.asarray(path_factors(draw_paths(KEY, 9, 1), 0.6)) == 1).all()  # one layer: the first


@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_dropped_paths_are_left_out_of_a_trunk(layers, remat):
    trunk = Trunk(depth=3, heads=2, layers=layers, remat=remat, drop_path=0.5)
    params = random_parameters(trunk.init, X, PAD)
    noise = jnp.asarray([[[0.9, 0.9], [0.76, 0.2], [0.4, 0.6]], [[0.1, 0.9], [0.7, 0.9], [0.9, 0.9]]])
    factors = [np.ones((2, 2)), np.array([[0, 1], [1, 0]]) / 0.75, np.array([[1, 0], [0, 0]]) / 0.5]
    want, allowed = np.asarray(X, np.float64), np.broadcast_to(~np.asarray(PAD)[:, None], (2, 5, 5))
    flat_params = {p: np.asarray(x, np.float64) for p, x in flat(params).items()}
    by_layer = flat_params if layers == "unroll" else unstack_layers(flat_params)
    for i, layer in enumerate(factors):
        of = {p.removeprefix(f"trunk/block_{i:02}/"): x for p, x in by_layer.items() if f"block_{i:02}/" in p}
        want = block_in_float64(of, want, 2, allowed, layer)
    out = jax.jit(trunk.apply)({"params": params}, X, PAD, noise)
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-4)
    assert (
        np.abs(out - jax.jit(trunk.apply)({"params": params}, X, PAD)).max() > 0.1
    )  # without noise nothing is dropped
    half = Trunk(depth=3, heads=2, layers=layers, remat=remat, drop_path=0.5, dtype=jnp.bfloat16)
    assert jax.eval_shape(half.apply, {"params": params}, X.astype(jnp.bfloat16), PAD, noise).dtype == jnp.bfloat16


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
    "axes, shape, spec",
    [
        ({"replica": 2, "fsdp": 4}, (8, 3, 16), "P('replica', None, 'fsdp')"),
        ({"replica": 2, "fsdp": 4}, (8, 16), "P('replica', 'fsdp')"),
        ({"fsdp": 8}, (8, 3, 16), "P('replica', None, 'fsdp')"),
        ({"replica": 2, "fsdp": 2, "tensor": 2}, (6, 16), "P('replica', 'fsdp')"),
        ({"replica": 8, "fsdp": 1}, (8, 3, 16), ""),
        ({"replica": 2, "fsdp": 4}, (8, 3, 18), ""),  # classes that do not divide
        ({"replica": 2, "fsdp": 4}, (7, 3, 16), ""),
        ({}, (8, 3, 16), ""),
    ],
)
def test_logits_are_pinned_to_where_their_table_lies(axes, shape, spec):
    with jax.set_mesh(make_mesh(axes, jax.devices()[:8])) if axes else contextlib.nullcontext():
        text = str(jax.make_jaxpr(columns_sharded)(jnp.zeros(shape)))
    assert spec in text and (bool(spec) == ("sharding_constraint" in text))


def test_within_shard_map_nothing_is_left_to_pin():
    mesh = make_mesh({"replica": 2, "fsdp": 4}, jax.devices()[:8])
    split = jax.shard_map(columns_sharded, mesh=mesh, in_specs=jax.P("replica"), out_specs=jax.P("replica"))
    assert "sharding_constraint" not in str(jax.make_jaxpr(split)(jnp.zeros((8, 3, 16))))


@pytest.mark.parametrize(
    "wrong, text",
    [
        (dict(heads=3), r"^width 8 does not divide into 3 heads$"),
        (
            dict(attention="flash"),
            r"^unknown attention 'flash'; valid: xla, cudnn, fused, fused_core, fused_interpret, fused_layer, "
            r"fused_layer_interpret$",
        ),
        (dict(activation="relu"), r"^unknown activation 'relu'; valid: gelu, gelu_tanh, quick_gelu$"),
        (dict(remat="some"), r"^unknown remat 'some'; valid: none, full, dots$"),
        (dict(drop_path=1.0), r"^drop_path must lie in \[0, 1\), got 1.0$"),
        (dict(drop_path=-0.1), r"^drop_path must lie in \[0, 1\), got -0.1$"),
        (dict(layers="loop"), r"^unknown layers 'loop'; valid: scan, unroll$"),
    ],
)
def test_unknown_words_are_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(Trunk(**(dict(depth=1, heads=2) | wrong)).init, KEY, X)

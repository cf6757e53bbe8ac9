"""Maps against finite differences, against a numpy oracle, and what they are for every pooling and objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals import saliency
from tests.objectives import models

IMAGE = models.BATCH["image"][:2]
TEXT_BxQxE = np.random.default_rng(1).standard_normal((2, 3, 6)).astype(np.float32)
TEXT_BxQxE /= np.linalg.norm(TEXT_BxQxE, axis=-1, keepdims=True)
POOLS = ("gap", "max", "cls", "map", "logsumexp(0.5)", "topk(3)")


@functools.cache
def clip(pool):
    module = models.build("clip", image_tower=models.IMAGE | dict(pool=pool, cls=pool == "cls"))
    return module, models.parameters(module)


def encode(module, params):
    return models.apply(module, params, {"image": IMAGE}, method="encode")["image"]


def test_unrolling_changes_nothing():
    module, params = clip("gap")
    assert "blocks" in params["image"]["trunk"]  # scanned before
    plain, flat = saliency.unrolled(module, params)
    assert set(flat["image"]["trunk"]) == {"block_00", "block_01"}
    both = ((module, params), (plain, flat))
    want, got = jax.jit(lambda: [models.apply(*m, models.BATCH, method="embed") for m in both])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), got, want)


@pytest.mark.parametrize("pool, block", [*((pool, 1) for pool in POOLS), ("max", 2)])
def test_gradients_are_finite_differences(pool, block):
    module, params = clip(pool)
    plain, flat = saliency.unrolled(module, params)
    eps = 4e-3

    def cosine(probe):
        z_BxE = saliency.embedding(plain, flat, IMAGE, pool="own", block=block, probe=probe)[0]
        return jnp.einsum("bqe,be->qb", TEXT_BxQxE, z_BxE)

    @jax.jit
    def differences():
        x, gradient = saliency.gradients(module, params, IMAGE, TEXT_BxQxE, block=block)
        anywhere = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32) / x.size**0.5
        along = jnp.stack([gradient[0] / jnp.linalg.norm(gradient[0]), anywhere])
        up, down = jax.vmap(cosine)(jnp.concatenate([eps * along, -eps * along])).reshape(2, 2, 3, 2)
        return x, gradient, jnp.einsum("qbtd,sbtd->sqb", gradient, along), (up - down) / (2 * eps)

    x, gradient, want, slope = differences()
    assert x.shape == (2, 16 + (pool == "cls"), 8) and gradient.shape == (3, *x.shape)
    size = float(jnp.linalg.norm(gradient[0]))
    assert size > 2e-3  # far above what rounding makes of the differences
    np.testing.assert_allclose(slope, want, atol=0.02 * size)


def test_gradcam_is_put_together_from_gradients():
    module, params = clip("cls")
    both = [
        functools.partial(f, module, params, IMAGE, TEXT_BxQxE, block=1) for f in (saliency.gradients, saliency.gradcam)
    ]
    (x, gradient), got = jax.tree.map(np.asarray, jax.jit(lambda: [f() for f in both])())
    for b, q in ((0, 0), (1, 2)):
        weight = gradient[q, b, 1:].mean(0)  # without the class token
        np.testing.assert_allclose(got[b, q], np.maximum(x[b, 1:] @ weight, 0), atol=1e-6)
    assert (got > 0).any()


def test_another_pooling_is_that_of_a_tower_with_these_weights():
    module, params = clip("max")
    other = models.build("clip", image_tower=models.IMAGE | dict(pool="gap"))
    draw = functools.partial(saliency.gradcam, params=params, image_BxHxWx3=IMAGE, text_BxQxE=TEXT_BxQxE, block=1)
    got, want, own = jax.jit(lambda: (draw(module, pool="gap"), draw(other), draw(module)))()
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.abs(got - own).max() > 1e-3


def test_similarity_is_the_cosine_of_a_patch_pooled_alone():
    module, params = clip("max")
    draw = functools.partial(saliency.similarity, module, params, IMAGE)
    tokens, got, same = jax.jit(lambda: (encode(module, params).x, draw(TEXT_BxQxE), draw(TEXT_BxQxE[0])))()
    z = tokens @ params["image_head"]["project"]["kernel"]
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    np.testing.assert_allclose(got, np.einsum("bne,bqe->bqn", z, TEXT_BxQxE), atol=1e-5)
    np.testing.assert_allclose(same[0], got[0], atol=1e-6)


def weights_of_tokens(x_BxNxD, pool):
    """[B, T]: how much of the pooled channels each token makes up."""
    b, n, d = x_BxNxD.shape
    if pool == "cls":
        return np.eye(n + 1)[[0] * b]
    if pool == "gap":
        return np.full((b, n), 1 / n)
    return np.stack([np.bincount(row.argmax(0), minlength=n) / d for row in x_BxNxD])


@pytest.mark.parametrize("pool", ["gap", "max", "cls"])
def test_rollout_is_the_product_of_attentions(pool):
    module, params = clip(pool)
    plain, flat = saliency.unrolled(module, params)
    enter = functools.partial(saliency.embedding, plain, flat, IMAGE, pool="own")
    x_BxNxD, *entering = jax.jit(lambda: [encode(module, params).x, *(enter(block=i)[1] for i in range(2))])()
    product = np.eye(16 + (pool == "cls"))[None]
    for i in range(2):
        block = jax.tree.map(np.float64, flat["image"]["trunk"][f"block_{i:02}"])
        x = np.float64(entering[i])
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * block["norm_1"]["scale"] + block["norm_1"]["bias"]
        qkv = x @ block["attention"]["qkv"]["kernel"] + block["attention"]["qkv"]["bias"]
        heads = []
        for h in range(2):
            q, k = qkv[..., 12 * h : 12 * h + 4], qkv[..., 12 * h + 4 : 12 * h + 8]
            e = np.exp(q @ k.swapaxes(1, 2) / 2)
            heads.append(e / e.sum(-1, keepdims=True))
        product = (np.mean(heads, 0) + np.eye(e.shape[-1])) / 2 @ product
    want = np.einsum("bt,btk->bk", weights_of_tokens(np.asarray(x_BxNxD), pool), product)[:, -16:]
    got = jax.jit(lambda: saliency.rollout(module, params, IMAGE))()
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_rollout_is_the_same_however_a_run_computes_attention():
    module, params = clip("gap")
    kernel = module.clone(compute={"attention": "fused_layer_interpret"})
    got, want = (jax.jit(lambda m=m: saliency.rollout(m, params, IMAGE))() for m in (kernel, module))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name, pool", [("clip", "map"), ("mae", "own"), ("m3ae", "own"), ("mae_clip", "topk(3)")])
def test_rollout_serves_every_objective(name, pool):
    module = models.build(name)
    params = models.parameters(module)
    if pool == "map":
        module, params = clip("map")
    got = jax.jit(lambda: saliency.rollout(module, params, IMAGE, pool="own" if pool == "map" else pool))()
    total = got.sum(-1)  # the class token holds the rest
    assert got.shape == (2, 16) and (got >= 0).all() and (total <= 1 + 1e-5).all() and got.std() > 0
    if not module.image_tower["cls"]:
        np.testing.assert_allclose(total, 1, atol=1e-5)


def test_errors():
    module, _ = clip("gap")
    assert saliency.check(module, ("own", "topk(2)"), -1) == 1 and saliency.check(module, ("own",), 2) == 2
    with pytest.raises(UserError, match="no block 3 in the image tower; valid: 0 to 1, -1 for the last, 2 for what"):
        saliency.check(module, ("own",), 3)
    with pytest.raises(UserError, match=r"unknown pool 'mean'; valid: gap, max, .*, own"):
        saliency.check(module, ("mean",), -1)
    with pytest.raises(UserError, match="pool 'map' has parameters, which this tower lacks; valid: own, gap"):
        saliency.check(module, ("map",), -1)
    with pytest.raises(UserError, match="pool 'cls' takes a class token, which this tower lacks; valid: own, gap"):
        saliency.check(module, ("cls",), -1)


def drawn_from(monkeypatch, x_BxTxD, gradient_QxBxTxD):
    """Grad-CAM maps [B, Q, N] of given tokens and gradients."""
    module, params = clip("gap")
    monkeypatch.setattr(saliency, "gradients", lambda *_, **__: (np.float32(x_BxTxD), np.float32(gradient_QxBxTxD)))
    return np.asarray(saliency.gradcam(module, params, IMAGE, TEXT_BxQxE, block=1))


NOISE = np.random.default_rng(3).standard_normal((4, 2, 16, 8))  # tokens, then gradients of three texts


@pytest.mark.parametrize("size, flat", [(1e-7, True), (1e-4, False)])
def test_a_map_whose_gradient_is_rounding_is_flat(monkeypatch, size, flat):
    """A LayerNorm may cancel the gradient of a token; what is left then has the size of the cosine's rounding."""
    got = drawn_from(monkeypatch, NOISE[0], size * NOISE[1:] / 16)
    assert (got == 0).all() if flat else (got.max(-1) > 0).all()


@pytest.mark.parametrize("part, flat", [(0.0, True), (0.1, False)])
def test_a_map_whose_products_cancel_is_flat(monkeypatch, part, flat):
    """Weights and tokens far larger than the sum of their products, as where they stand at right angles."""
    tokens = NOISE[0, :, :, :1] * np.ones(8)  # the same in all channels, over which weights sum to 8 times `part`
    weight = 1e3 * (NOISE[1, 0, 0] - NOISE[1, 0, 0].mean()) + part
    got = drawn_from(monkeypatch, tokens, np.broadcast_to(weight / 16, (3, 2, 16, 8)))
    assert (got == 0).all() if flat else (got.max(-1) > 0).all()


def test_a_map_that_is_not_finite_is_not_called_flat(monkeypatch):
    assert np.isnan(drawn_from(monkeypatch, NOISE[0], np.full((3, 2, 16, 8), np.nan))).all()


def test_gradcam_of_a_tower_in_bfloat16_has_the_rounding_of_float32():
    """Gradients that nearly cancel drown in the rounding of bfloat16."""
    module, params = clip("max")
    half = module.clone(compute=dict(module.compute or {}) | {"dtype": "bfloat16"})
    draw = functools.partial(saliency.gradcam, params=params, image_BxHxWx3=IMAGE, text_BxQxE=TEXT_BxQxE, block=1)
    want, got = jax.jit(lambda: (draw(module), draw(half)))()
    assert (want.max(-1) > 0).any()
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_gradcam_on_accelerators_multiplies_in_full_float32():
    """Their default precision rounds the factors of a float32 product to bfloat16, or nearly so."""
    module, params = clip("max")
    draw = functools.partial(saliency.gradcam, module, params, IMAGE, TEXT_BxQxE, block=1)
    products = [line for line in jax.jit(draw).lower().as_text().splitlines() if "stablehlo.dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)

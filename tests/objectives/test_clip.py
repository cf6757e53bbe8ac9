"""CLIP, SigLIP and FLIP: embeddings and losses put together again from their parts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.tower import Encoder
from maeclip_jax.objectives import losses
from maeclip_jax.params import flatten
from maeclip_jax.run import flops
from tests.objectives import models

BATCH = models.BATCH


def test_an_embedding_is_pooled_projected_and_normalised():
    module = models.build("clip", image_tower=models.IMAGE | dict(pool="max"))
    params = models.parameters(module)
    out = models.outputs(module, params)
    tokens = out["encode"]
    assert tokens["image"].x.shape == (4, 16, 8) and tokens["text"].x.shape == (4, 8, 8)
    np.testing.assert_array_equal(tokens["text"].pad, BATCH["text"] == 0)
    texts = tokens["text"].x.astype(np.float64)
    pooled = {
        "image": tokens["image"].x.astype(np.float64).max(1),
        "text": np.stack([row[:n].mean(0) for row, n in zip(texts, models.LENGTHS)]),
    }
    for stream, x in pooled.items():
        z = x @ params[f"{stream}_head"]["project"]["kernel"]  # no bias
        np.testing.assert_allclose(out["embed"][stream], z / np.linalg.norm(z, axis=-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_is_the_named_one_of_the_embeddings(loss):
    module = models.build("clip", loss=loss)
    params = models.parameters(module)
    out = models.outputs(module, params)
    z = [jnp.asarray(out["embed"][s]) for s in ("image", "text")]
    if loss == "softmax":
        want, parts = losses.contrastive_softmax(*z, params["log_logit_scale"])
        assert "logit_bias" not in params
    else:
        want, parts = losses.contrastive_sigmoid(*z, params["log_logit_scale"], params["logit_bias"])
        assert float(out["metrics"]["logit_bias"]) == pytest.approx(float(params["logit_bias"]))
    assert float(out["loss"]) == pytest.approx(float(want), rel=1e-4)
    assert {k: float(out["metrics"][k]) for k in parts} == {k: float(v) for k, v in parts.items()}
    metrics = out["metrics"]
    assert float(metrics["contrast"]) == float(out["loss"])
    assert float(metrics["logit_scale"]) == pytest.approx(math.exp(params["log_logit_scale"]), rel=1e-5)
    for stream, embedding in out["embed"].items():
        assert float(metrics[f"{stream}_mean_norm"]) == pytest.approx(np.linalg.norm(embedding.mean(0)), abs=1e-5)


@pytest.mark.parametrize("name", ["clip", "mae_clip", "slip"])
def test_equal_captions_are_found_by_their_ids_and_said(name):
    batch = BATCH | {"text": BATCH["text"][[0, 1, 0, 3]]}
    made = {word: models.build(name, duplicates=word) for word in losses.DUPLICATES}
    params = models.parameters(made["negative"])
    out = {word: models.outputs(module, params, batch) for word, module in made.items()}
    assert float(out["negative"]["metrics"]["duplicates"]) == 25.0
    assert float(models.outputs(made["negative"], params)["metrics"]["duplicates"]) == 0.0
    # Equal captions have equal embeddings, so that in a group the sums of both kinds of targets are the same.
    assert float(out["negative"]["metrics"]["contrast"]) == float(out["positive"]["metrics"]["contrast"])
    assert float(out["negative"]["metrics"]["text_to_image_top1"]) <= 50  # those of a group cannot both be first
    z = [jnp.asarray(out["positive"]["embed"][s]) for s in ("image", "text")]
    want, _ = losses.contrastive_softmax(*z, params["log_logit_scale"], 1, batch["text"], "positive")
    assert float(out["positive"]["metrics"]["contrast"]) == pytest.approx(float(want), rel=1e-4)
    assert made["negative"].doubt({"duplicates": 25.0}, 4) == made["negative"].doubt({}, 4) == ""
    assert made["negative"].doubt({"duplicates": 75.0}, 4) == (
        "all 4 captions of the batch are equal, so the contrast has nothing to tell apart"
    )


def test_a_sigmoid_says_yes_to_equal_captions_where_they_are_positives():
    batch = BATCH | {"text": BATCH["text"][[0, 1, 0, 3]]}
    made = {word: models.build("clip", loss="sigmoid", duplicates=word) for word in losses.DUPLICATES}
    params = models.parameters(made["negative"])
    out = {word: models.outputs(module, params, batch) for word, module in made.items()}
    z = {s: np.asarray(out["negative"]["embed"][s], np.float64) for s in ("image", "text")}
    logits = math.exp(params["log_logit_scale"]) * z["image"] @ z["text"].T + float(params["logit_bias"])
    # Two pairs of the 16 change their answer: -log(1 - p) becomes -log(p), which is less by the logit.
    change = (logits[0, 2] + logits[2, 0]) / 4
    assert abs(change) > 1e-3
    assert float(out["negative"]["loss"]) - float(out["positive"]["loss"]) == pytest.approx(change, rel=1e-4)


@pytest.mark.parametrize("loss, scale, bias", [("softmax", 1 / 0.07, None), ("sigmoid", 10, -10)])
def test_temperature_and_bias_start_where_their_papers_have_them(loss, scale, bias):
    module = models.build("clip", loss=loss)

    def scalars(rng):
        params = module.init(rng, BATCH, train=False)["params"]
        return params["log_logit_scale"], params.get("logit_bias")

    log_scale, found = jax.jit(scalars)(jax.random.key(0))
    assert math.exp(log_scale) == pytest.approx(scale, rel=1e-5)
    assert found == bias


def test_flip_is_clip_s_loss_of_the_patches_it_keeps():
    """Against float64 arithmetic on the tokens that left the towers: half of the patches, all of the words."""
    module = models.build("clip", keep=0.5)
    params = models.parameters(module)

    @jax.jit
    def run(params):
        def towers(m, method):
            return isinstance(m, Encoder) and method == "__call__"

        return models.apply(module, params, BATCH, train=True, seed=0, capture_intermediates=towers)

    (loss, _), kept = run(params)
    tokens = {s: kept["intermediates"][s]["__call__"][0][s] for s in ("image", "text")}
    assert tokens["image"].x.shape == (4, 8, 8) and tokens["text"].x.shape == (4, 8, 8)
    z = {}
    for stream, t in tokens.items():
        real = np.ones(t.x.shape[:2]) if t.pad is None else 1 - np.asarray(t.pad, np.float64)
        pooled = np.einsum("bnd,bn->bd", np.asarray(t.x, np.float64), real) / real.sum(1, keepdims=True)
        projected = pooled @ np.asarray(params[f"{stream}_head"]["project"]["kernel"], np.float64)
        z[stream] = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    logits = np.exp(float(params["log_logit_scale"])) * z["image"] @ z["text"].T
    logs = [np.log(np.exp(x).sum(1)) - np.diag(x) for x in (logits, logits.T)]
    assert float(loss) == pytest.approx(np.mean(logs), rel=1e-5)


def test_flip_sees_fewer_patches_in_training_alone():
    flip, clip = models.build("clip", keep=0.5), models.build("clip")
    params = models.parameters(clip)
    assert {p: x.shape for p, x in flatten(models.parameters(flip)).items()} == {
        p: x.shape for p, x in flatten(params).items()
    }
    whole = models.outputs(clip, params)
    trained, again = (models.outputs(flip, params, seed=seed) for seed in (0, 1))
    assert len({float(o["loss"]) for o in (whole, trained, again)}) == 3  # each seed drops other patches
    np.testing.assert_allclose(trained["embed"]["image"], whole["embed"]["image"], atol=1e-6)
    assert trained["encode"]["image"].x.shape == (4, 16, 8)

    def work(module, train):
        return flops.forward_matmul_flops(lambda p: models.apply(module, p, BATCH, train=train, seed=0)[0], params)

    assert work(flip, train=True) < 0.85 * work(clip, train=True)
    assert work(flip, train=False) == work(clip, train=False) == work(clip, train=True)
    jax.eval_shape(lambda p: models.apply(flip, p, BATCH, train=False), params)  # needs no randomness


def test_keep_counts_patches():
    tower = models.IMAGE | dict(patch=2)  # 64 patches; the qkv matmul counts those that are encoded
    params = models.parameters(models.build("clip", image_tower=tower))

    def patches_encoded(keep):
        module = models.build("clip", image_tower=tower, keep=keep)
        jaxpr = jax.make_jaxpr(lambda p: models.apply(module, p, BATCH, train=True, seed=0)[0])(params)
        return {n for n in (64, 32, 16, 1) if f"f32[4,{n},24]" in str(jaxpr)}

    assert patches_encoded(1.0) == {64}
    assert patches_encoded(0.5) == {32}
    assert patches_encoded(0.25) == {16}
    assert patches_encoded(0.001) == {1}


def test_a_pool_of_more_patches_than_are_kept_is_refused_in_training_alone():
    module = models.build("clip", keep=0.5, image_tower=models.IMAGE | dict(pool="topk(9)"))
    with pytest.raises(ValueError) as error:
        models.parameters(module)
    assert str(error.value) == (
        "topk pooling needs a whole k in 1..8 (the number of tokens), got 9.0; keep=0.5 leaves 8 of 16 patches in "
        "training"
    )
    params = models.parameters(models.build("clip"))
    jax.eval_shape(lambda p: models.apply(module, p, BATCH, train=False), params)


def test_pads_do_not_reach_an_embedding():
    module = models.build("clip")
    params = models.parameters(module)

    def total(params):
        return jnp.sum(jnp.sin(models.apply(module, params, {"text": BATCH["text"]}, method="embed")["text"]))

    table = np.asarray(jax.jit(jax.grad(total))(params)["text"]["embed_text"]["token"]["embedding"])
    assert (table[0] == 0).all()
    assert (np.abs(table[np.unique(BATCH["text"])[1:]]).max(-1) > 0).all()


@pytest.mark.parametrize("pool", ["map", "cls", "last"])
def test_towers_pool_separately(pool):
    text = models.TEXT | dict(pool=pool, causal=pool == "last")
    found = flatten(models.parameters(models.build("clip", text_tower=text)))
    assert ("text_head/pool/map/probe" in found) == (pool == "map")
    assert not any("image_head/pool" in path for path in found)
    image = models.IMAGE | dict(pool=pool, cls=pool == "cls")
    found = flatten(models.parameters(models.build("clip", image_tower=image)))
    assert ("image_head/pool/map/probe" in found) == (pool == "map")
    assert ("image/cls" in found) == (pool == "cls")


def test_what_does_not_fit_is_refused():
    def refused(text, **changes):
        with pytest.raises(ValueError, match=text):
            models.parameters(models.build("clip", **changes))

    refused(r"^unknown loss 'triplet'; valid: softmax, sigmoid$", loss="triplet")
    refused(r"^keep must lie in \(0, 1\], got 0$", keep=0)
    refused(r"^keep must lie in \(0, 1\], got 1.5$", keep=1.5)
    refused(r"^unknown duplicates 'both'; valid: negative, positive$", duplicates="both")
    refused(r"^label_smoothing must lie in \[0, 1\), got 1.0$", label_smoothing=1.0)
    refused(r"^label_smoothing is of loss='softmax', not of 'sigmoid'; valid", label_smoothing=0.1, loss="sigmoid")
    refused(r"^contrast_mib must be above 0, got 0$", contrast_mib=0)
    refused(r"^unknown pool 'mean'; valid: gap, max, ", text_tower=models.TEXT | dict(pool="mean"))
    refused(
        r"^image_tower.pool is cls but image_tower.cls is False: there is no class token to take$",
        image_tower=models.IMAGE | dict(pool="cls"),
    )
    refused(
        r"^text of 8 tokens, but the text tower has 7 positions$", text_tower=models.TEXT | dict(length=7)
    )  # fmt: skip

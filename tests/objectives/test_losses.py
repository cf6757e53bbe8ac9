"""Losses against float64 arithmetic written from their papers; gradients against their closed forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.objectives import losses

RNG = np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


ZI, ZT = unit(RNG.standard_normal((6, 5))), unit(RNG.standard_normal((6, 5)))
LOG_SCALE = np.log(1 / 0.07)


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def single(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def test_softmax_contrast_and_its_gradient_are_clip_s():
    logits = np.exp(LOG_SCALE) * ZI @ ZT.T
    rows, columns = softmax(logits, 1), softmax(logits, 0)
    want = -(np.log(np.diag(rows)).mean() + np.log(np.diag(columns)).mean()) / 2
    # d loss / d logits = (softmax over rows + over columns - 2 I) / 2B
    by_logits = (rows + columns - 2 * np.eye(6)) / 12
    function = jax.jit(jax.value_and_grad(losses.contrastive_softmax, argnums=(0, 1, 2), has_aux=True))
    (loss, _), grads = function(*single(ZI, ZT, LOG_SCALE))
    assert float(loss) == pytest.approx(want, rel=1e-5)
    scale = np.exp(LOG_SCALE)
    np.testing.assert_allclose(grads[0], scale * by_logits @ ZT, atol=1e-5)
    np.testing.assert_allclose(grads[1], scale * by_logits.T @ ZI, atol=1e-5)
    np.testing.assert_allclose(grads[2], (by_logits * logits).sum(), atol=1e-5)


def test_sigmoid_contrast_and_its_gradient_are_siglip_s():
    log_scale, bias = np.log(10.0), -3.0
    logits = np.exp(log_scale) * ZI @ ZT.T + bias
    sign = 2 * np.eye(6) - 1
    want = np.log1p(np.exp(-sign * logits)).sum() / 6
    by_logits = -sign / (1 + np.exp(sign * logits)) / 6
    function = jax.jit(jax.value_and_grad(losses.contrastive_sigmoid, argnums=(0, 1, 2, 3), has_aux=True))
    (loss, _), grads = function(*single(ZI, ZT, log_scale, bias))
    assert float(loss) == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(grads[0], 10 * by_logits @ ZT, atol=1e-5)
    np.testing.assert_allclose(grads[1], 10 * by_logits.T @ ZI, atol=1e-5)
    np.testing.assert_allclose(grads[2], (by_logits * (logits - bias)).sum(), atol=1e-5)
    np.testing.assert_allclose(grads[3], by_logits.sum(), atol=1e-5)


BATCH, WIDTH, SCALARS = 64, 16, (2.6, -3.0)  # of the tests in parts: log scale, bias
CONTRASTS = {
    "softmax": lambda i, t, scale, bias, parts: losses.contrastive_softmax(i, t, scale + 0 * bias, parts),
    "sigmoid": losses.contrastive_sigmoid,
}


def graded(loss, parts, devices):
    """(compiled value and gradients of a loss in parts, its arguments), the batch split over `devices`."""
    rng = np.random.default_rng(1)
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    split, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    images, noise = (unit(rng.standard_normal((BATCH, WIDTH))) for _ in range(2))
    z = [jax.device_put(x.astype(np.float32), split) for x in (images, unit(images + 1.2 * noise))]  # some are found
    args = (*z, *(jax.device_put(np.float32(x), whole) for x in SCALARS))
    function = jax.value_and_grad(lambda *a: CONTRASTS[loss](*a, parts), argnums=(0, 1, 2, 3), has_aux=True)
    return jax.jit(function, out_shardings=(None, (split, split, whole, whole))).lower(*args).compile(), args


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("loss", CONTRASTS)
def test_in_parts_a_contrast_and_its_gradients_are_the_same(loss, devices):
    plain, args = graded(loss, 1, 1)
    (want, metrics), grads = plain(*args)
    for parts in (2, 8):
        function, args = graded(loss, parts, devices)
        (have, measured), found = function(*args)
        np.testing.assert_allclose(have, want, rtol=2e-6)
        assert {k: float(v) for k, v in measured.items()} == {k: float(v) for k, v in metrics.items()}
        for a, b in zip(found, grads):  # images, texts, scale, bias
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    assert 0 < float(metrics["image_to_text_top1"]) < 100  # a metric that could differ
    assert [bool(np.abs(g).max() > 1e-3) for g in grads] == [True, True, True, loss == "sigmoid"]


@pytest.mark.parametrize("loss", CONTRASTS)
def test_in_parts_a_device_holds_and_fetches_one_part(loss):
    """64 pairs on 8 devices: [8, 64] logits whole, [8, 16] in 4 parts; no device fetches logits or all texts."""

    def compiled(parts):
        made = graded(loss, parts, 8)[0]
        return made.as_text(), made.memory_analysis().temp_size_in_bytes

    (whole, bytes_whole), (text, bytes_parts) = compiled(1), compiled(4)
    assert "f32[8,64]" in whole and "f32[8,16]" in text
    for logits in ("[64,64]", "[8,64]", "[64,8]"):
        assert logits not in text
    fetched = set(re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text))
    assert fetched and fetched <= {"16,16", "16"}  # a part of 16 texts of 16 numbers, and a number of each
    assert bytes_parts < 0.6 * bytes_whole


def captions(groups):
    """[B, 5] ids, of which those of a group are equal; groups differ in one id, in the place of the padding too."""
    ids = np.zeros((len(groups), 5), np.int32)
    ids[:, :2] = 7
    for row, group in zip(ids, groups):
        row[2:4] = group // 3, group % 3  # group 0 is the others' beginning, and ends before them
    return ids


def multi_positive(loss, image, text, groups, log_scale, bias):
    """(loss, gradient by the logits [B, B]) in float64, from the targets of every pair."""
    same = groups[:, None] == groups[None]
    logits = np.exp(log_scale) * image @ text.T
    if loss == "softmax":
        target = same / same.sum(1, keepdims=True)  # of rows; of columns its transpose, which is itself
        rows, columns = softmax(logits, 1), softmax(logits, 0)
        value = -((target * np.log(rows)).sum(1).mean() + (target * np.log(columns)).sum(0).mean()) / 2
        return value, (rows + columns - 2 * target) / (2 * len(image))
    sign = 2 * same - 1
    logits = logits + bias
    value = np.log1p(np.exp(-sign * logits)).sum() / len(image)
    return value, -sign / (1 + np.exp(sign * logits)) / len(image)


GROUPS = {
    "some": np.random.default_rng(3).integers(0, 9, BATCH),
    "pairs": np.arange(BATCH) // 2,
    "all": np.zeros(BATCH, int),
    "none": np.arange(BATCH),
}


@pytest.mark.parametrize("parts, devices", [(1, 1), (4, 1), (1, 8), (8, 8)])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("loss", CONTRASTS)
def test_equal_captions_share_the_target(loss, groups, parts, devices):
    rng, groups = np.random.default_rng(1), GROUPS[groups]
    image, noise = (unit(rng.standard_normal((BATCH, WIDTH))) for _ in range(2))
    text = unit(image + 1.2 * noise)
    log_scale, bias = SCALARS
    want, by_logits = multi_positive(loss, image, text, groups, log_scale, bias)

    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    split, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    z = [jax.device_put(x.astype(np.float32), split) for x in (image, text)]
    ids = jax.device_put(captions(groups), split)
    scalars = [jax.device_put(np.float32(x), whole) for x in SCALARS[: 1 if loss == "softmax" else 2]]

    def value(image, text, ids, *scalars):
        function = losses.contrastive_softmax if loss == "softmax" else losses.contrastive_sigmoid
        return function(image, text, *scalars, parts, ids, "positive")

    (have, metrics), grads = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(*z, ids, *scalars)
    np.testing.assert_allclose(have, want, rtol=2e-6)
    np.testing.assert_allclose(grads[0], np.exp(log_scale) * by_logits @ text, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(grads[1], np.exp(log_scale) * by_logits.T @ image, rtol=2e-5, atol=1e-6)

    cosines, same = image @ text.T, groups[:, None] == groups[None]
    others = np.where(same, -np.inf, cosines)
    for name, axis in (("image_to_text_top1", 1), ("text_to_image_top1", 0)):
        assert float(metrics[name]) == pytest.approx(100 * np.mean(np.diag(cosines) > others.max(axis)))
    assert float(metrics["duplicates"]) == pytest.approx(100 * (1 - len(set(groups)) / BATCH), abs=1e-4)


@pytest.mark.parametrize("duplicates", losses.DUPLICATES)
@pytest.mark.parametrize("parts", [1, 4])
def test_smoothing_spreads_a_share_of_each_target_over_the_batch(duplicates, parts):
    rng, groups = np.random.default_rng(1), GROUPS["some" if duplicates == "positive" else "none"]
    image, text = (unit(rng.standard_normal((BATCH, WIDTH))) for _ in range(2))
    logits, same = np.exp(LOG_SCALE) * image @ text.T, groups[:, None] == groups[None]
    target = 0.9 * same / same.sum(1, keepdims=True) + 0.1 / BATCH
    rows, columns = softmax(logits, 1), softmax(logits, 0)
    want = -((target * np.log(rows)).sum(1).mean() + (target * np.log(columns)).sum(0).mean()) / 2
    by_logits = (rows + columns - 2 * target) / (2 * BATCH)

    def value(image, text, log_scale):
        return losses.contrastive_softmax(image, text, log_scale, parts, jnp.asarray(captions(groups)), duplicates, 0.1)

    function = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))
    (have, _), grads = function(*single(image, text, LOG_SCALE))
    np.testing.assert_allclose(have, want, rtol=2e-6)
    np.testing.assert_allclose(grads[0], np.exp(LOG_SCALE) * by_logits @ text, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(grads[1], np.exp(LOG_SCALE) * by_logits.T @ image, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(grads[2], (by_logits * logits).sum(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("loss", CONTRASTS)
def test_equal_captions_are_negatives_unless_they_are_asked_to_share(loss):
    function = losses.contrastive_softmax if loss == "softmax" else losses.contrastive_sigmoid
    scalars = SCALARS[: 1 if loss == "softmax" else 2]
    plain, alone = function(*single(ZI, ZT, *scalars))
    groups = np.array([0, 1, 1, 2, 3, 1])
    known, metrics = function(*single(ZI, ZT, *scalars), 1, jnp.asarray(captions(groups)))
    shared, _ = function(*single(ZI, ZT, *scalars), 1, jnp.asarray(captions(groups)), "positive")
    assert float(plain) == float(known) and abs(float(shared) - float(plain)) > 1e-2
    assert "duplicates" not in alone and float(metrics["duplicates"]) == pytest.approx(100 * 2 / 6)
    assert {k: float(metrics[k]) for k in alone} == {k: float(x) for k, x in alone.items()}
    for word, ids, text in (("maybe", None, "unknown duplicates 'maybe'; valid: negative, positive"),
                            ("positive", None, "duplicates='positive' needs captions_BxT")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            function(*single(ZI, ZT, *scalars), 1, ids, word)


def test_parts_are_as_few_as_the_limit_allows():
    assert losses.parts_within(128, 16384, 8) == 1  # [2048, 16384] of 4 bytes are 128 MiB
    assert losses.parts_within(127, 16384, 8) == 2
    assert losses.parts_within(128, 32768, 4) == 8
    assert losses.parts_within(128, 32768, 256) == 1
    assert losses.parts_within(0.001, 96, 8) == 6  # 1152 bytes of [12, 96]: 12 columns of each device, two at a time
    assert losses.parts_within(1e-6, 96, 8) == 12
    with pytest.raises(ValueError, match="a batch of 6 does not divide into 4 parts"):
        losses.contrastive_softmax(*single(ZI, ZT, LOG_SCALE), parts=4)


def test_contrast_of_random_embeddings_is_log_batch_and_of_perfect_ones_is_nothing():
    same = jnp.ones((8, 4)) / 2
    assert float(losses.contrastive_softmax(same, same, jnp.asarray(3.0))[0]) == pytest.approx(np.log(8), rel=1e-5)
    own = jnp.eye(8)
    assert float(losses.contrastive_softmax(own, own, jnp.asarray(4.0))[0]) == pytest.approx(0, abs=1e-6)


def both(image, text):
    softmax = losses.contrastive_softmax(*single(image, text, 2.0))[1]
    sigmoid = losses.contrastive_sigmoid(*single(image, text, 2.0, -1.0))[1]
    return [{k: float(v) for k, v in m.items()} for m in (softmax, sigmoid)]


def test_in_batch_top1_both_ways():
    want_i2t = 100 * np.mean((ZI @ ZT.T).argmax(1) == np.arange(6))
    want_t2i = 100 * np.mean((ZI @ ZT.T).argmax(0) == np.arange(6))
    for metrics in both(ZI, ZT):
        assert metrics["image_to_text_top1"] == pytest.approx(want_i2t)
        assert metrics["text_to_image_top1"] == pytest.approx(want_t2i)
    # Three pictures and captions of their own, the fourth caption is the third again: a tie does not count as a hit.
    texts = np.eye(4)[[0, 1, 2, 2]]
    for metrics in both(np.eye(4), texts):
        assert metrics == {"image_to_text_top1": 50.0, "text_to_image_top1": 75.0}


def test_a_collapsed_model_has_no_top1():
    point = unit(RNG.standard_normal((1, 5))).repeat(6, 0)
    for metrics in both(point, point):
        assert metrics == {"image_to_text_top1": 0.0, "text_to_image_top1": 0.0}


def test_patches_are_normalised_with_the_unbiased_variance():
    patches = 3 * RNG.standard_normal((2, 4, 12)) + 1
    mean, var = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True, ddof=1)
    normal, m, std = losses.patch_normalise(jnp.asarray(patches, jnp.float32))
    np.testing.assert_allclose(normal, (patches - mean) / np.sqrt(var + 1e-6), atol=1e-5)
    np.testing.assert_allclose(m, mean, atol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(var + 1e-6), atol=1e-6)
    assert np.isfinite(losses.patch_normalise(jnp.full((1, 1, 12), 7.0))[0]).all()  # a patch of one colour


def test_pixels_count_where_they_are_masked():
    predicted, target = RNG.standard_normal((2, 5, 12)), RNG.standard_normal((2, 5, 12))
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)
    want = ((predicted - target) ** 2)[mask].mean()  # every patch has as many pixels, so this is the mean over patches
    args = (*single(predicted, target), jnp.asarray(mask))
    loss, gradient = jax.jit(jax.value_and_grad(losses.reconstruction_image))(*args)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    expected = np.where(mask[..., None], 2 * (predicted - target) / 12 / mask.sum(), 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert (np.asarray(gradient)[~mask] == 0).all()
    assert float(losses.reconstruction_image(*args[:2], jnp.zeros((2, 5), bool))) == 0


def test_words_count_where_they_are_masked_and_no_padding():
    logits = 2 * RNG.standard_normal((3, 6, 7))
    text = np.array([[1, 2, 3, 4, 5, 6], [1, 2, 3, 0, 0, 0], [1, 2, 0, 0, 0, 0]])
    pad = text == 0
    mask = np.array([[1, 1, 0, 0, 0, 1], [0, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]], bool)  # the last: only pads
    logits[0, 5] = 100 * np.eye(7)[6]  # one word known for sure
    counted = mask & ~pad
    entropy = -np.log(np.take_along_axis(softmax(logits, -1), text[..., None], -1)[..., 0])
    # M3AE: mean over a sample's words, then over samples; a sample without any counts as 0.
    want = np.mean([entropy[0][counted[0]].mean(), entropy[1][counted[1]].mean(), 0])
    right = (logits.argmax(-1) == text)[counted]
    args = (jnp.asarray(logits, jnp.float32), *map(jnp.asarray, (text, mask, pad)))
    (loss, accuracy), gradient = jax.jit(jax.value_and_grad(losses.reconstruction_text, has_aux=True))(*args)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    assert float(accuracy) == pytest.approx(100 * right.mean())
    assert (np.asarray(gradient)[~counted] == 0).all()
    assert (np.abs(gradient[0, :2]).max(-1) > 1e-4).all()


def test_largest_logits_that_are_equal_share_a_right_answer():
    logits = jnp.asarray([[[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]]])
    everything = jnp.ones((1, 3), bool)
    accuracy = losses.reconstruction_text(logits, jnp.asarray([[2, 1, 1]]), everything, ~everything)[1]
    assert float(accuracy) == pytest.approx(100 * (1 / 2 + 1 / 4 + 0) / 3)


def test_losses_are_float32_whatever_comes_in():
    half = jnp.asarray(ZI, jnp.bfloat16)
    assert losses.contrastive_softmax(half, half, jnp.asarray(1.0))[0].dtype == jnp.float32
    args = (jnp.zeros((1, 2, 3), jnp.bfloat16), jnp.zeros((1, 2, 3)), jnp.ones((1, 2), bool))
    assert losses.reconstruction_image(*args).dtype == jnp.float32
    words = (jnp.zeros((1, 2, 3), jnp.bfloat16), jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    assert losses.reconstruction_text(*words, jnp.zeros((1, 2), bool))[0].dtype == jnp.float32


def test_fingerprints_are_equal_exactly_where_captions_are():
    rng = np.random.default_rng(0)
    captions = rng.integers(0, 4, (600, 6)).astype(np.int32)  # 4,096 possible ones: some are equal
    captions[1] = captions[0][::-1]  # the same tokens in another order
    prints = np.stack(losses.fingerprints(jnp.asarray(captions)), axis=1)
    assert prints.shape == (600, 3) and prints.dtype == np.uint32
    same = (captions[:, None] == captions[None]).all(-1)
    assert same.sum() > 600 and ((prints[:, None] == prints[None]).all(-1) == same).all()
    assert all(len(np.unique(prints[:, k])) == len(np.unique(captions, axis=0)) for k in range(3))


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("scale, noise", [(30.0, 2.5), (60.0, 3.0)])
def test_the_gradient_of_fitted_pairs_in_bfloat16_is_that_of_float32(scale, noise, parts):
    """Where a pair is nearly right, 1 - p is what its two roundings differ by, unless both logits are rounded alike."""
    lots = np.random.default_rng(0)

    def unit(x):
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    text = unit(lots.normal(size=(256, 512)))
    image = unit(text + noise * unit(lots.normal(size=(256, 512))))
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        exchange = losses.Exchange(dtype=dtype)
        loss, slopes = jax.value_and_grad(
            lambda i, t, e=exchange: losses.contrastive_softmax(i, t, jnp.log(scale), parts, exchange=e)[0], (0, 1)
        )(image, text)
        # What the normalisation before it lets through.
        found[dtype] = [g - (g * x).sum(-1, keepdims=True) * x for g, x in zip(slopes, (image, text))]
        assert loss >= 0
    for ours, exact in zip(found[jnp.bfloat16], found[jnp.float32]):
        assert np.linalg.norm(ours - exact) < 0.02 * np.linalg.norm(exact)

"""SLIP: its loss against float64 arithmetic written from its source, its head, and what views are made of."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.data.image_ops import sample_box
from maeclip_jax.objectives import slip, views
from maeclip_jax.parallel import sharding
from maeclip_jax.params import flatten
from tests.objectives import models

BATCH = models.BATCH
RNG = np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


A = unit(RNG.standard_normal((12, 6)))
B = unit(A + 0.9 * unit(RNG.standard_normal((12, 6))))


def nt_xent(a, b, temperature):
    """(loss, top-1 of a's views in percent): every one of 2B views looks for its partner among the 2B - 1 others."""
    views, n = np.concatenate([a, b]), len(a)
    logits = views @ views.T / temperature
    np.fill_diagonal(logits, -np.inf)
    partner = np.concatenate([np.arange(n) + n, np.arange(n)])
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -logs[np.arange(2 * n), partner].mean(), 100 * np.mean(logits.argmax(1) == partner, where=partner >= n)


@pytest.mark.parametrize("parts", [1, 3, 12])
def test_views_look_for_their_partners_among_all_others(parts):
    function = jax.jit(jax.value_and_grad(lambda a, b: slip.nt_xent(a, b, 0.1, parts), argnums=(0, 1), has_aux=True))
    (loss, top1), grads = function(jnp.asarray(A, jnp.float32), jnp.asarray(B, jnp.float32))
    want, hits = nt_xent(A, B, 0.1)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    assert float(top1) == pytest.approx(hits, rel=1e-6) and 0 < hits < 100
    for which, gradient in enumerate(grads):
        for at in ((0, 0), (7, 3)):  # central differences of the float64 loss
            low, high = (([A.copy(), B.copy()], step) for step in (-1e-5, 1e-5))
            for both, step in (low, high):
                both[which][at] += step
            slope = (nt_xent(*high[0], 0.1)[0] - nt_xent(*low[0], 0.1)[0]) / 2e-5
            assert float(gradient[at]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_collapsed_views_find_nobody():
    same = jnp.asarray(unit(np.ones((4, 3))), jnp.float32)
    loss, top1 = slip.nt_xent(same, same, 0.1)
    assert float(loss) == pytest.approx(np.log(7), rel=1e-5) and float(top1) == 0


def test_the_loss_is_clip_s_plus_the_weighted_one_of_two_views():
    out = {}
    for weight in (0.0, 0.5):
        module = models.build("slip", simclr=models.MODELS["slip"]["simclr"] | dict(weight=weight))
        params = models.parameters(module)
        out[weight] = models.outputs(module, params)
    clip = models.outputs(models.build("clip"), params)
    assert float(out[0.0]["loss"]) == pytest.approx(float(clip["loss"]), rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, clip["embed"], out[0.5]["embed"])
    metrics = out[0.5]["metrics"]
    assert float(out[0.5]["loss"]) == pytest.approx(
        float(metrics["contrast"]) + 0.5 * float(metrics["simclr"]), rel=1e-5
    )
    assert 0.01 < float(metrics["simclr"]) < 30 and set(metrics) - set(clip["metrics"]) == {"simclr", "view_top1"}
    other = models.outputs(module, params, seed=1)["metrics"]
    assert float(other["simclr"]) != float(metrics["simclr"]) and float(other["contrast"]) == float(metrics["contrast"])


def test_a_limit_on_logits_changes_nothing():
    module = models.build("slip")
    params = models.parameters(module)
    want, have = (models.outputs(m, params) for m in (module, models.build("slip", contrast_mib=1e-6)))
    assert {k: float(v) for k, v in have["metrics"].items()} == pytest.approx(
        {k: float(v) for k, v in want["metrics"].items()}, rel=1e-5
    )


def test_views_and_statistics_do_not_depend_on_the_devices():
    """Eight pictures on one device and on eight: the same views, found among all of them."""
    module = models.build("slip")
    params = models.parameters(module)
    batch = {k: np.concatenate([BATCH[k], BATCH[k][::-1]]) for k in ("image", "text")}

    def metrics(devices):
        mesh = sharding.make_mesh({"replica": devices}, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            loss = jax.jit(lambda p, b: models.apply(module, p, b, train=True, seed=0))
            return {k: float(v) for k, v in loss(params, sharding.place(batch, mesh))[1].items()}

    assert metrics(8) == pytest.approx(metrics(1), rel=1e-5)


def test_views_train_the_image_tower_and_the_head_alone():
    module = models.build("slip")
    params = models.parameters(module)
    grads = jax.jit(jax.grad(lambda p: models.apply(module, p, BATCH, train=True, seed=0)[1]["simclr"]))(params)
    moved = {path.split("/")[0] for path, g in flatten(grads).items() if np.abs(g).max() > 1e-6}
    assert moved == {"image", "simclr_head"}


def test_the_head_is_three_layers_with_statistics_of_the_batch():
    head = slip.SimclrHead(hidden=12, width=5)
    x = RNG.standard_normal((7, 4))
    params = jax.tree.map(
        lambda p: RNG.standard_normal(p.shape), jax.eval_shape(lambda: head.init(jax.random.key(0), x))["params"]
    )
    assert {p: v.shape for p, v in flatten(params).items() if p.endswith("kernel")} == {
        "up/kernel": (4, 12), "down/kernel": (12, 12), "project/kernel": (12, 5),
    }  # fmt: skip
    y = x
    for name in ("up", "down"):
        y = y @ params[name]["kernel"] + params[name]["bias"]
        y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5) * params[f"{name}_norm"]["scale"] + params[f"{name}_norm"][
            "bias"
        ]
        y = np.maximum(y, 0)
    y = unit(y @ params["project"]["kernel"] + params["project"]["bias"])
    np.testing.assert_allclose(jax.jit(head.apply)({"params": params}, x.astype(np.float32)), y, atol=1e-5)


def test_views_may_come_with_the_batch():
    """Then the loss of views depends on them and not on the picture that CLIP sees, which stays as it is."""
    settings = models.MODELS["slip"]["simclr"]
    module = models.build("slip", simclr=settings | dict(views="batch"))
    assert module.inputs()["views"].shape == (2, 16, 16, 3) and module.inputs()["views"].dtype == np.uint8
    assert "views" not in models.build("slip").inputs()
    params = models.parameters(module)
    made = {"views": np.random.default_rng(1).integers(0, 256, (4, 2, 16, 16, 3), dtype=np.uint8)}

    def metrics(batch):
        loss = jax.jit(lambda batch: models.apply(module, params, batch, train=True, seed=0)[1])
        return {k: float(v) for k, v in loss(batch).items()}

    one = metrics(BATCH | made)
    other = metrics(BATCH | made | {"image": BATCH["image"][::-1]})
    assert one["simclr"] == pytest.approx(other["simclr"], rel=1e-6) and one["contrast"] != other["contrast"]
    assert metrics(BATCH | {"views": made["views"][::-1]})["simclr"] != one["simclr"]
    assert metrics(BATCH)["simclr"] != one["simclr"]  # as in evaluation: crops of the picture
    with pytest.raises(ValueError, match=r"unknown simclr.views 'both'; valid: image, batch"):
        models.parameters(models.build("slip", simclr=settings | dict(views="both")))


def test_crops_are_drawn_as_simclr_draws_them():
    """Area and ratio of boxes that stick out are drawn anew, not cut: mean area 0.478 of a square, not 0.534."""
    count = 40_000
    height, width = (np.asarray(x)[:, 0] for x in views.boxes(jax.random.key(0), count))
    draw = np.random.default_rng(0)
    sizes = np.array([sample_box(draw, 4000, 4000, (0.08, 1), (3 / 4, 4 / 3))[2:] for _ in range(count)]) / 4000
    area, want = height * width, sizes.prod(1)
    error = 4 * (2 / count) ** 0.5 * want.std()
    assert abs(area.mean() - want.mean()) < error and abs(area.mean() - 0.478) < error
    assert max(height.max(), width.max()) <= 1 and area.min() >= 0.0799
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(area, share) == pytest.approx(np.quantile(want, share), abs=0.015)
        ratio = np.quantile(width / height, share)
        assert ratio == pytest.approx(np.quantile(sizes[:, 1] / sizes[:, 0], share), abs=0.015)


def test_views_are_drawn_as_often_as_said_and_from_the_key_alone():
    side, count = 24, 1500
    across = np.linspace(40, 200, side)
    one = np.stack([np.broadcast_to(across, (side, side)), *(np.full((side, side), v) for v in (90, 160))], -1)
    pictures = np.broadcast_to(one.astype(np.uint8), (count, side, side, 3))

    @jax.jit
    def function(rng, pictures):
        drawn = views.draw(rng, count)
        return jnp.round(views.distort(drawn["look"], views.crop(drawn["box"], pictures))).astype(np.uint8)

    drawn = np.asarray(function(jax.random.key(3), pictures))
    assert drawn.dtype == np.uint8 and drawn.shape == pictures.shape
    np.testing.assert_array_equal(drawn, function(jax.random.key(3), pictures))
    assert (drawn != np.asarray(function(jax.random.key(4), pictures))).any((1, 2, 3)).all()
    grey = (np.ptp(drawn.astype(int), axis=-1) <= 1).all((1, 2))
    assert grey.mean() == pytest.approx(0.2, abs=0.05)
    slope = np.asarray(drawn, float)[:, :, :, 0].mean(1)
    slope = slope[:, -1] - slope[:, 0]
    assert np.mean(slope[~grey] < 0) == pytest.approx(0.5, abs=0.06)  # mirrored
    untouched = (abs(drawn[..., 1:].astype(int) - (90, 160)) <= 1).all((1, 2, 3))
    assert np.mean(untouched) == pytest.approx(0.2 * 0.8, abs=0.04)  # neither jittered nor grey
    share = abs(slope[untouched]) / 160 * (side - 1) / side  # the part of the ramp that the crop shows
    assert share.min() > 0.24 and share.max() <= 1 and 0.6 < share.mean() < 0.75


def test_a_window_shows_its_part_and_blurring_keeps_the_light():
    ramp = np.arange(8.0)
    for place, share, want in [(0.0, 1.0, ramp), (1.0, 0.5, np.clip(3.75 + ramp / 2, 0, 7))]:
        weights = views._window(jnp.full((1, 1), place), jnp.full((1, 1), share), 8)
        np.testing.assert_allclose(weights[0] @ ramp, want, atol=1e-5)
    at = jnp.arange(8)[None]
    np.testing.assert_allclose(views._weights(at, jnp.full((1, 1), 0.01), 8)[0], np.eye(8), atol=1e-6)
    away = np.arange(8)[:, None] - np.arange(8)
    want = np.exp(-(away**2) / (2 * 1.5**2))
    blur = views._weights(at, jnp.full((1, 1), 1.5), 8)[0]
    np.testing.assert_allclose(blur, want / want.sum(1, keepdims=True), atol=1e-6)


def test_jitter_is_brightness_contrast_saturation_and_hue():
    x = RNG.uniform(0.2, 0.6, (1, 3, 4, 3))

    def jittered(light=1.0, contrast=1.0, colour=1.0, hue=0.0):
        return np.asarray(
            views._jittered(jnp.asarray(x), *(jnp.full((1, 1, 1, 1), v) for v in (light, contrast, colour, hue)))
        )

    grey = (x * views.GREY).sum(-1, keepdims=True)
    np.testing.assert_allclose(jittered(), x, atol=1e-6)
    np.testing.assert_allclose(jittered(light=1.5), 1.5 * x, atol=1e-6)
    np.testing.assert_allclose(jittered(contrast=0.5), (x + grey.mean()) / 2, atol=1e-6)
    np.testing.assert_allclose(jittered(colour=0.5), (x + grey) / 2, atol=1e-6)

    def turned(pixel, share):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((hue + share) % 1, saturation, value)

    for share in (0.1, -0.1, 1 / 3):
        want = [turned(pixel, share) for pixel in x.reshape(-1, 3)]
        np.testing.assert_allclose(jittered(hue=share).reshape(-1, 3), want, atol=1e-5)

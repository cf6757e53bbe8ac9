"""SILC and TIPS: what their losses are made of, whom they train, how the teacher moves, and where views lie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.objectives import distillation, views
from maeclip_jax.parallel import sharding
from maeclip_jax.params import flatten
from maeclip_jax.run import flops
from tests.objectives import models

# 8 pairs, for 8 devices.
BATCH = {k: np.concatenate([models.BATCH[k], models.BATCH[k][::-1]]) for k in ("image", "text")}
NAMES = ("silc", "tips")
RNG = np.random.default_rng(0)


def distil(name, **changes):
    return models.MODELS[name]["distil"] | changes


@functools.cache
def made(name, **changes):
    """(module, parameters, a teacher that has moved away from them)."""
    module = models.build(name, distil=distil(name, **changes))
    params = models.parameters(module)
    teacher = module.teacher(jax.tree.map(lambda x: 0.7 * x + 0.05, params))
    for centre in teacher.get("centre", {}):
        teacher["centre"][centre] = jnp.asarray(0.2 * RNG.standard_normal(16), jnp.float32)
    return module, params, teacher


@functools.cache
def _program(module, keeps):
    def loss(params, teacher, batch, seed):
        variables = {"params": params} | ({} if teacher is None else {"teacher": teacher})
        out = module.apply(variables, batch, train=True, rngs={"mask": jax.random.key(seed)}, mutable=keeps)
        (loss, metrics), changed = out if keeps else (out, {})
        return loss, (metrics, changed)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def clip():
    """What CLIP says of the batch with the parameters of TIPS."""
    return models.outputs(models.build("clip"), made("tips")[1], BATCH)


def trained(module, params, teacher, batch=BATCH, seed=0):
    """(loss, metrics, gradients by path, the teacher's collection as the loss leaves it)."""
    batch = {k: batch[k] for k in module.inputs()}
    (loss, (metrics, changed)), grads = _program(module, ("teacher",) if teacher else False)(
        params, teacher, batch, jnp.asarray(seed)
    )
    return float(loss), {k: float(v) for k, v in metrics.items()}, flatten(grads), changed.get("teacher")


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_weighted_sum_of_its_parts(name):
    loss, metrics, _, _ = trained(*made(name))
    weights = models.MODELS[name]["weights"]
    assert loss == pytest.approx(sum(weights[k] * metrics[k] for k in weights), rel=1e-5)
    assert all(0.01 < metrics[k] < 50 for k in weights)
    units = models.build(name).units
    assert {"distil", "teacher_entropy", "teacher_spread", "teacher_dimensions"} <= set(metrics) & set(units)


def test_in_evaluation_it_is_clip():
    module, params, _ = made("tips")
    loss, metrics = jax.jit(lambda: models.apply(module, params, BATCH, train=False))()  # without randomness
    assert float(loss) == pytest.approx(float(clip()["loss"]), rel=1e-6)
    assert set(metrics) == set(clip()["metrics"])


def test_captions_are_contrasted_with_every_global_view():
    """With TIPS' one global view, which is the picture, the contrast is CLIP's; SILC's second is a crop."""
    contrast = trained(*made("tips"))[1]["contrast"]
    assert contrast == pytest.approx(float(clip()["metrics"]["contrast"]), rel=1e-5)
    one, other = (trained(*made("silc"), seed=seed)[1]["contrast"] for seed in (0, 1))
    assert one != other and one == pytest.approx(contrast, rel=0.5)


def test_without_a_teacher_the_student_is_its_own():
    module, params, _ = made("tips")
    loss, metrics, grads, _ = trained(module, params, None)
    again = trained(module, params, module.teacher(params))
    assert loss == pytest.approx(again[0], rel=1e-5) and metrics == pytest.approx(again[1], rel=1e-4)
    for path, gradient in grads.items():
        np.testing.assert_allclose(gradient, again[2][path], rtol=1e-4, atol=1e-5)


def test_distillation_trains_the_image_tower_and_a_head_alone():
    module, params, teacher = made("tips")

    def losses(params):
        variables = {"params": params, "teacher": teacher}
        metrics = module.apply(variables, BATCH, train=True, rngs={"mask": jax.random.key(0)})[1]
        return {k: metrics[k] for k in ("distil", "patches")}

    moved = {"distil": {"image", "distil_head"}, "patches": {"image", "patch_head", "mask_token"}}
    for name, grads in jax.jit(jax.jacrev(losses))(params).items():
        assert {p.split("/")[0] for p, g in flatten(grads).items() if np.abs(g).max() > 1e-7} == moved[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_follows_and_its_centre_is_a_running_mean(name):
    module, params, teacher = made(name)
    after = trained(module, params, teacher)[3]
    for head in module.heads:
        away = np.abs(after["centre"][head] - 0.9 * teacher["centre"][head])
        assert 0 < away.max() <= 0.1 + 1e-6  # a tenth of logits, which are cosines
    jax.tree.map(np.testing.assert_array_equal, after["params"], teacher["params"])
    followed = module.follow(after, params)
    for path, x in flatten(followed["params"]).items():
        want = 0.9 * flatten(teacher["params"])[path] + 0.1 * flatten(params)[path]
        np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-6)
    assert set(followed["params"]) == {k for k in module.taught if k in params} < set(params)
    jax.tree.map(np.testing.assert_array_equal, followed["centre"], after["centre"])


def test_sinkhorn_keeps_no_centre_and_crops_may_be_of_the_whole_picture():
    module, params, teacher = made("silc", centring="sinkhorn", views="batch")
    assert set(teacher) == {"params"} and module.inputs()["views"].shape == (1, 16, 16, 3)
    whole = np.random.default_rng(1).integers(0, 256, (8, 1, 16, 16, 3), dtype=np.uint8)
    _, metrics, _, after = trained(module, params, teacher, BATCH | {"views": whole})
    assert set(after) == {"params"}
    assert metrics["teacher_spread"] > trained(*made("silc"))[1]["teacher_spread"]  # spread evenly, as it should
    other = trained(module, params, teacher, BATCH | {"views": whole[::-1]})[1]
    assert metrics["distil"] != other["distil"]


def test_devices_and_a_limit_on_logits_change_nothing():
    """Eight pairs on one device in one part, and on eight with logits of a row at a time."""
    module, params, teacher = made("tips")
    mesh = sharding.make_mesh({"replica": 8}, jax.devices()[:8])
    with jax.set_mesh(mesh):
        split = models.build("tips", distil=distil("tips"), contrast_mib=1e-6)
        spread = trained(split, params, teacher, sharding.place(BATCH, mesh))[1]
    assert spread == pytest.approx(trained(module, params, teacher)[1], rel=2e-5)
    rows = models.build("tips", distil=distil("tips"), contrast_mib=1e-6)
    assert trained(rows, params, teacher)[1] == pytest.approx(spread, rel=2e-5)


@pytest.mark.parametrize("name, heads", [("silc", 1), ("tips", 2)])
@pytest.mark.parametrize("centring", distillation.CENTRINGS)
def test_logits_lie_where_prototypes_do(name, heads, centring):
    """Those of student and teacher, and those of each round of Sinkhorn and Knopp."""
    module, params, teacher = made(name, centring=centring)
    given = {k: BATCH[k] for k in module.inputs()}
    rngs = {"mask": jax.random.key(0)}
    with jax.set_mesh(sharding.make_mesh({"replica": 2, "fsdp": 4}, jax.devices()[:8])):
        text = str(
            jax.make_jaxpr(
                lambda both: module.apply(both, given, train=True, rngs=rngs, mutable=["teacher"]),
            )({"params": params, "teacher": teacher})
        )
    rounds = distillation.ITERATIONS if centring == "sinkhorn" else 0
    assert text.count("P('replica', None, 'fsdp')") == heads * (2 + rounds)


def test_hidden_patches_say_nothing_of_what_is_in_them():
    """The student's token of a hidden patch does not depend on its pixels, and does on where it is."""
    module, params, _ = made("tips")
    x = np.asarray(RNG.standard_normal((2, 16, 48)), np.float32)
    mask = np.zeros((2, 16), bool)
    mask[:, [3, 9]] = True

    @jax.jit
    def tokens(x):
        hidden = (mask, jnp.full(8, 0.3))
        return module.apply({"params": params}, x, method=lambda m, x: m.image({"image": x}, hidden=hidden))["image"].x

    other = x.copy()
    other[:, [3, 9]] += 1
    np.testing.assert_array_equal(tokens(x), tokens(other))
    assert not np.allclose(tokens(x)[:, 3], tokens(x)[:, 9], atol=1e-3)
    other[:, 4] += 1
    assert not np.allclose(tokens(x), tokens(other), atol=1e-3)


def test_a_smaller_picture_has_the_positions_of_the_whole_one():
    module, params, _ = made("silc")
    encode = jax.jit(
        lambda x: module.apply({"params": params}, x, method=lambda m, x: m.image({"image": x}))["image"].x
    )
    x = np.asarray(RNG.standard_normal((2, 16, 48)), np.float32)
    assert encode(x[:, :4]).shape == (2, 4, 8)
    with pytest.raises(ValueError, match="6 patches are neither the grid of 4x4 nor a square of their own"):
        encode(x[:, :6])


def test_crops_show_their_part_of_the_picture():
    ramp = np.broadcast_to(np.arange(16) * 15, (1, 16, 16)).astype(np.uint8)
    picture = np.stack([ramp, ramp.swapaxes(1, 2), ramp], axis=-1)
    boxes = np.array([[[0.0, 1.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]], np.float32)  # top right quarter; all of it
    quarter, whole = (255 * x for x in views.crops(jnp.asarray(boxes), picture, 8)[0])
    np.testing.assert_allclose(quarter[0, :, 0], 15 * np.arange(8, 16), atol=0.01)
    np.testing.assert_allclose(quarter[:, 0, 1], 15 * np.arange(8), atol=0.01)
    np.testing.assert_allclose(whole[0, :, 0], 15 * (2 * np.arange(8) + 0.5), atol=0.01)
    boxes = np.asarray(views.places(jax.random.key(0), 2000, 3, (0.05, 0.4)))
    area = boxes[..., 2] * boxes[..., 3]
    assert boxes.shape == (2000, 3, 4) and area.min() > 0.0499 and area.max() < 0.4001
    assert area.mean() == pytest.approx(0.225, abs=0.01) and boxes[..., :2].min() >= 0 and boxes.max() <= 1


def test_what_has_no_gradient_counts_once():
    """The teacher's pass, what it assigns, and crops."""
    module, params, _ = made("tips")
    counted = {}
    for name, count in (("forward", flops.forward_matmul_flops), ("training", flops.training_matmul_flops)):
        counted[name] = count(lambda p: models.apply(module, p, BATCH, train=True, seed=0)[0], params)
    encode = flops.forward_matmul_flops(
        lambda p: models.apply(module, p, {"image": BATCH["image"]}, method="encode")["image"].x, params
    )
    head = 2 * 8 * (8 * 12 + 12 * 12 + 12 * 8)
    logits = 2 * 8 * (1 + 8) * 8 * 16  # of pictures and of hidden patches
    crops = 2 * 8 * 2 * 3 * (8 * 16 * 16 + 8 * 8 * 16)  # two local views of 8 x 8 pixels
    covariance = 2 * 8 * 8 * 8
    once = encode + head + 16 * head + logits + crops + covariance
    assert counted["training"] == pytest.approx(3 * counted["forward"] - 2 * once, rel=1e-6)


@pytest.mark.parametrize("changes, text", [
    (dict(centring="median"), "unknown distil.centring 'median'; valid: mean, sinkhorn"),
    (dict(first="crops"), "unknown distil.first 'crops'; valid: picture, crop"),
    (dict(views="both"), "unknown distil.views 'both'; valid: image, batch"),
    (dict(globals=1, locals=0), "distil.globals is 1 and distil.locals 0; valid: a global view and another"),
    (dict(momentum=1.0), r"distil.momentum must lie in \[0, 1\), got 1.0"),
    (dict(teacher_temperature=0.0), "distil.teacher_temperature must be above 0, got 0.0"),
    (dict(local_area=(0.4, 0.05)), r"distil.local_area is \(0.4, 0.05\); valid: two shares of a picture, the smaller "),
    (dict(local_patches=5), "distil.local_patches is 5; valid: 1 to 4"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        models.parameters(models.build("silc", distil=distil("silc", **changes)))


def test_a_pool_of_more_patches_than_a_local_view_has_is_refused_in_training():
    module = models.build("silc", image_tower=models.IMAGE | dict(pool="topk(5)"))
    with pytest.raises(ValueError) as error:
        models.parameters(module)
    assert str(error.value) == (
        "topk pooling needs a whole k in 1..4 (the number of tokens), got 5.0; a local view has 2x2 patches "
        "(distil.local_patches)"
    )


def test_a_mask_that_hides_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mask.image=0.0 hides none of 16 patches; valid: above 0"):
        models.parameters(models.build("tips", mask=dict(image=0.0)))
    with pytest.raises(ValueError, match=r"keep is 0.5, but views that are distilled keep all of their patches"):
        models.parameters(models.build("silc", keep=0.5))


@pytest.mark.parametrize("name", NAMES)
def test_a_collapse_is_said(name):
    module = models.build(name)
    fine = {"duplicates": 0.0, "teacher_entropy": 1.0, "teacher_spread": 2.0, "patch_entropy": 1.0, "patch_spread": 2.0}
    assert module.doubt(fine, 4) == "" and module.doubt({"duplicates": 0.0}, 4) == ""
    uniform = fine | {"teacher_entropy": float(np.log(16))}
    assert module.doubt(uniform, 4) == distillation.collapsed(np.log(16), 2.0, 16, "pictures") != ""
    if name == "tips":
        assert "assigns all patches to the same prototypes" in module.doubt(fine | {"patch_spread": 0.0}, 4)

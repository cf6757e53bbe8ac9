"""Self-distillation against float64 arithmetic written from its sources, and signs of collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.objectives import distillation

RNG = np.random.default_rng(0)
ROWS, VIEWS, TARGETS, WIDTH, COUNT = 12, 4, 2, 6, 10
TEMPERATURES = (0.1, 0.04)


def unit(x, axis=-1):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


STUDENT, TEACHER = (unit(RNG.standard_normal((ROWS, n, WIDTH))) for n in (VIEWS, TARGETS))
OWN, THEIR = (unit(RNG.standard_normal((WIDTH, COUNT)), axis=0) for _ in range(2))
CENTRE = 0.3 * RNG.standard_normal(COUNT)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropies(student, own, centre=CENTRE):
    """(mean over pairs of unequal views, assignments of the teacher): one pair after the other."""
    targets = softmax((TEACHER @ THEIR - centre) / TEMPERATURES[1])
    logs = np.log(softmax(student @ own / TEMPERATURES[0]))
    pairs = [(g, v) for g in range(TARGETS) for v in range(VIEWS) if g != v]
    return np.mean([-(targets[:, g] * logs[:, v]).sum(-1).mean() for g, v in pairs]), targets


def f32(*arrays):
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


@pytest.mark.parametrize("parts", [1, 3, 12])
def test_views_are_assigned_as_the_teacher_assigns_the_others(parts):
    def loss(student, own, teacher, their, centre):
        pairs = distillation.others(TARGETS, VIEWS)
        return distillation.distilled(student, teacher, own, their, centre, pairs, TEMPERATURES, parts)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))
    (found, about), grads = both(*f32(STUDENT, OWN, TEACHER, THEIR, CENTRE))
    want, targets = cross_entropies(STUDENT, OWN)
    assert float(found) == pytest.approx(want, rel=1e-5)
    assert float(about["entropy"]) == pytest.approx(-(targets * np.log(targets)).sum(-1).mean(), rel=1e-4)
    mean = targets.mean((0, 1))
    assert float(about["spread"]) == pytest.approx(-(mean * np.log(mean)).sum(), rel=1e-4)
    for nothing in grads[2:]:  # none reaches the teacher
        assert not np.any(nothing)
    for which, at in ((0, (3, 1, 2)), (1, (4, 7))):  # central differences of the float64 loss
        values = []
        for step in (-1e-5, 1e-5):
            both = [STUDENT.copy(), OWN.copy()]
            both[which][at] += step
            values.append(cross_entropies(*both)[0])
        assert float(grads[which][at]) == pytest.approx((values[1] - values[0]) / 2e-5, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_sinkhorn_spreads_a_batch_evenly(parts):
    """As three rounds of dividing by the sums of rows and of columns, samples last; all views of a batch at once."""
    q = np.exp(TEACHER.reshape(-1, WIDTH) @ THEIR / 0.04).T
    for _ in range(distillation.ITERATIONS):
        q = q / q.sum(1, keepdims=True) / q.shape[0]
        q = q / q.sum(0, keepdims=True) / q.shape[1]
    centre = jax.jit(lambda *x: distillation.sinkhorn_centre(*x, 0.04, parts))(*f32(TEACHER, THEIR))
    found = softmax((TEACHER.reshape(-1, WIDTH) @ THEIR - np.asarray(centre, float)) / 0.04)
    np.testing.assert_allclose(found, (q * q.shape[1]).T, atol=2e-5)
    plain = softmax(TEACHER.reshape(-1, WIDTH) @ THEIR / 0.04)
    assert np.std(found.mean(0)) < np.std(plain.mean(0))  # more evenly than without


def test_the_fewest_parts_that_fit_are_taken():
    assert distillation.parts_within(1, 1024, 4096, 1) == 16 and distillation.parts_within(1, 1024, 4096, 8) == 2
    assert distillation.parts_within(1e-6, 1024, 4096, 8) == 128 and distillation.parts_within(128, 64, 512) == 1


def test_dimensions_are_counted_by_the_eigenvalues_of_the_covariance():
    x = RNG.standard_normal((500, 2, 5)) * (3, 2, 1, 0.1, 0)
    eigenvalues = np.linalg.eigvalsh(np.cov(x.reshape(-1, 5).T, bias=True))
    found = jax.jit(distillation.dimensions)(*f32(x))
    assert float(found) == pytest.approx(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum(), rel=1e-4)
    assert float(jax.jit(distillation.dimensions)(jnp.ones((4, 2, 3)))) == 0


def test_a_collapse_is_one_sentence_with_a_remedy():
    most = np.log(512)
    assert distillation.collapsed(0.5 * most, 0.8 * most, 512, "pictures") == ""
    assert distillation.collapsed(0.995 * most, most, 512, "pictures") == (
        "the teacher assigns pictures to all 512 prototypes alike (entropy 6.21 of at most 6.24 nats), so there is "
        "nothing to distil: lower distil.teacher_temperature"
    )
    assert distillation.collapsed(0.0, 0.01, 512, "patches") == (
        "the teacher assigns all patches to the same prototypes (entropy of the mean 0.01 of at most 6.24 nats), so "
        "there is nothing to distil: raise distil.teacher_temperature, or set distil.centring=sinkhorn"
    )


def test_the_head_is_three_layers_and_prototypes_of_length_one():
    head = distillation.PrototypeHead(hidden=12, width=5, prototypes=7)
    x = RNG.standard_normal((3, 2, 4)).astype(np.float32)
    params = jax.jit(head.init)(jax.random.key(0), x)["params"]
    assert jax.tree.map(np.shape, params) == {
        "up": {"kernel": (4, 12), "bias": (12,)}, "down": {"kernel": (12, 12), "bias": (12,)},
        "project": {"kernel": (12, 5), "bias": (5,)}, "prototypes": (5, 7),
    }  # fmt: skip
    made = jax.jit(head.apply)({"params": params}, x)
    np.testing.assert_allclose(np.linalg.norm(made, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(distillation.prototypes(params), axis=0), 1, atol=1e-5)

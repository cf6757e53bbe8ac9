"""The optimum is unique: the gradient is zero there, scikit-learn finds the same, and so does every other way to it."""

import warnings

import jax
import numpy as np
import pytest
import scipy.optimize
from threadpoolctl import threadpool_info

from maeclip_jax.evals import logistic

N, D, C = 240, 12, 4
L2 = (0.01, 1.0, 30.0)


def problem(seed=0, rows=N):
    """Classes that overlap; features with very different variances, away from zero."""
    r = np.random.default_rng(seed)
    axes = np.linalg.qr(r.normal(size=(D, D)))[0]
    x = (r.normal(size=(rows, D)) * 3.0 ** -np.arange(D)) @ axes + r.normal(size=D)
    label = (2 * (x - x.mean(0)) @ r.normal(size=(D, C)) + r.gumbel(size=(rows, C))).argmax(1)
    return x.astype(np.float32), label


def objective(x, label, w, b, l2):
    """Value and gradients in float64, written down anew."""
    z = x.astype(np.float64) @ w + b
    z -= z.max(1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    value = -np.log(p[np.arange(len(x)), label]).sum() + l2 / 2 * np.square(w).sum()
    p[np.arange(len(x)), label] -= 1
    return value, x.T @ p + l2 * w, p.sum(0)


@pytest.fixture(scope="module")
def solved():
    x, label = problem()
    return x, label, logistic.Problem(x, label, C).solve(L2, tolerance=1e-9)


def test_the_gradient_vanishes(solved):
    x, label, fit = solved
    assert fit.converged.all() and (fit.iterations < 60).all()
    for n, l2 in enumerate(L2):
        value, by_w, by_b = objective(x, label, fit.weights[n].astype(np.float64), fit.bias[n], l2)
        assert max(np.abs(by_w).max(), np.abs(by_b).max()) < 0.02  # of sums over 240 rows, in float32
        assert value / N == pytest.approx(fit.loss[n], rel=1e-5)


def test_weights_and_loss_are_those_of_scikit_learn(solved):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, label, fit = solved
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    for n, l2 in enumerate(L2):
        with warnings.catch_warnings(), limits(1):
            warnings.simplefilter("ignore")
            theirs = linear_model.LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10000)
            theirs.fit(x.astype(np.float64), label)
        value = objective(x, label, theirs.coef_.T, theirs.intercept_, l2)[0]
        assert fit.loss[n] * N == pytest.approx(value, rel=1e-5)
        # Intercepts are known up to a number common to all classes.
        ours = fit.bias[n] - fit.bias[n].mean()
        scale = np.abs(theirs.coef_).max()
        np.testing.assert_allclose(fit.weights[n], theirs.coef_.T, atol=2e-3 * scale)
        np.testing.assert_allclose(ours, theirs.intercept_ - theirs.intercept_.mean(), atol=5e-3 * scale)
        chances = jax.nn.softmax(fit.scores(x, n))
        np.testing.assert_allclose(chances, theirs.predict_proba(x.astype(np.float64)), atol=1e-4)


def same(fit, other, atol=3e-3):
    np.testing.assert_allclose(fit.loss, other.loss, rtol=1e-5)
    np.testing.assert_allclose(fit.weights, other.weights, atol=atol * np.abs(other.weights).max())


def test_in_blocks_or_whole(solved, monkeypatch):
    x, label, fit = solved
    monkeypatch.setattr(logistic, "BLOCK_BYTES", 1)  # blocks of 256 rows at most: more than one below
    parts = logistic.Problem(np.concatenate([x] * 2), np.concatenate([label] * 2), C)
    assert parts._x.shape == (2, N, D + 1)
    found = parts.solve([2 * l2 for l2 in L2], tolerance=1e-9)  # every row twice, twice the penalty: the same optimum
    same(found, fit)


def test_the_order_of_strengths_is_the_caller_s(solved):
    x, label, fit = solved
    found = logistic.Problem(x, label, C).solve([L2[n] for n in (1, 2, 0)], tolerance=1e-9)
    same(found, fit.take([1, 2, 0]))
    assert found.l2.tolist() == [L2[n] for n in (1, 2, 0)]


def test_a_start_shortens_the_way(solved):
    x, label, fit = solved
    again = logistic.Problem(x, label, C).solve(L2, start=fit.take([2, 0, 1]), tolerance=1e-6)
    assert (again.iterations <= 4).all() and (again.iterations < fit.iterations).all()
    same(again, fit)


def test_shifted_and_turned_features_give_the_same_scores(solved):
    x, label, fit = solved
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(D, D)))[0].astype(np.float32)
    other_x = x @ turn + 7
    other = logistic.Problem(other_x, label, C).solve(L2, tolerance=1e-9)
    for n in range(len(L2)):
        ours, theirs = fit.scores(x, n), other.scores(other_x, n)
        np.testing.assert_allclose(
            ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True), atol=0.05
        )


def test_a_class_without_rows_and_a_dead_feature(solved):
    x, label, fit = solved
    # Class 1 is empty, the old 1..3 are now 2..4; feature D is constant.
    wide = np.concatenate([x, np.full((N, 1), 3.0, np.float32)], axis=1)
    found = logistic.Problem(wide, label + (label > 0), C + 1).solve(L2, tolerance=1e-9)
    assert np.isneginf(found.bias[:, 1]).all() and (found.weights[:, :, 1] == 0).all()
    assert np.abs(found.weights[:, D]).max() < 1e-4
    same(logistic.Fit(L2, found.weights[:, :D][..., [0, 2, 3, 4]], None, found.loss, None, None), fit)
    assert (found.scores(wide).argmax(1) != 1).all()


def test_it_says_when_it_did_not_arrive(solved):
    x, label, fit = solved
    stopped = logistic.Problem(x, label, C).solve(L2, tolerance=1e-12, iterations=2)
    assert not stopped.converged.any() and (stopped.iterations == 2).all() and (stopped.loss > fit.loss).all()


def test_inside_a_mesh_of_many_devices(solved):
    x, label, fit = solved
    mesh = jax.make_mesh((len(jax.devices()),), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        same(logistic.Problem(x, label, C).solve(L2, tolerance=1e-9), fit)


def test_threads_of_scipy_s_blas_do_not_wait_for_one_another(solved, monkeypatch):
    x, label, _ = solved
    real, threads = scipy.optimize.minimize, []

    def minimize(*args, **settings):
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return real(*args, **settings)

    monkeypatch.setattr(scipy.optimize, "minimize", minimize)
    logistic.Problem(x, label, C).solve([1.0])
    assert threads and set(threads) == {1}


def test_features_that_are_not_numbers_do_not_converge(solved, monkeypatch):
    x, label, _ = solved
    made = logistic.Problem(x, label, C)
    made._x = made._x.at[0, 3].set(np.nan)
    assert not made.solve([1.0], iterations=5).converged.any()


@pytest.mark.parametrize("l2", [[], [0.0], [1.0, np.nan]])
def test_l2_must_be_positive(solved, l2):
    x, label, _ = solved
    with pytest.raises(ValueError, match="l2 must be positive and finite"):
        logistic.Problem(x, label, C).solve(l2)

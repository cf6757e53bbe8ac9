"""The search for l2, with its rounds, against every strength's own accuracy."""

import numpy as np
import pytest

from maeclip_jax.evals import l2_search, logistic

SETTING = dict(classes=6, width=12, far=0.4)


def test_search_finds_the_strength_that_validates_best(clouds):
    (x, label), (x_val, label_val) = clouds(240, 1, **SETTING), clouds(240, 2, **SETTING)
    made, done = logistic.Problem(x, label, 6), []
    found = l2_search.search(made, x_val, label_val, tick=done.append)
    l2 = found.fit.l2
    assert len(l2) == sum(done) == l2_search.MOST and (np.diff(l2) > 0).all()
    np.testing.assert_allclose(np.diff(np.log10(l2))[found.best - 1 : found.best + 1], 1 / 8, atol=1e-6)
    for n in range(len(l2)):
        right = found.fit.scores(x_val, n).argmax(1) == label_val
        assert found.accuracy[n] == pytest.approx(100 * right.mean())
    best = np.flatnonzero(found.accuracy == found.accuracy.max())
    assert found.best == best[-1] and not found.at_edge


def test_search_says_when_the_best_is_at_the_edge(clouds):
    (x, label), (x_val, label_val) = clouds(240, 1, **SETTING), clouds(240, 2, **SETTING)
    found = l2_search.search(logistic.Problem(x, label, 6), x_val, label_val, [1e8, 1e5, 1e7])
    assert found.fit.l2.tolist() == [1e5, 1e7, 1e8]
    assert found.at_edge == (found.best != 1) and found.accuracy[found.best] == found.accuracy.max()
    one = l2_search.search(logistic.Problem(x, label, 6), x_val, label_val, [1.0])
    assert one.best == 0 and one.at_edge
    tied = l2_search.Search(one.fit, np.array([1.0, 2.0, 1.0]), 1)
    assert not tied.at_edge and tied._replace(best=2).at_edge


def test_some_rows_are_drawn_once_each(clouds):
    x, label = clouds(60, 1)
    few_x, few = l2_search.some(x, label, 20, seed=3)
    places = [int(np.flatnonzero((x == row).all(1))[0]) for row in few_x]
    assert len(set(places)) == 20 and (label[places] == few).all() and max(places) > 40
    for rows in (None, 60, 100):
        assert l2_search.some(x, label, rows, seed=3)[0] is x
